"""What the supervisor answers to workers, without processes: leases by their sockets."""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from prefork.core.worker_requests import Granted, LeaseRequest
from prefork.parent.requests import Asker, Requests
from prefork.system.worker_channel import WorkerChannel


@contextlib.contextmanager
def claimed(requests: Requests[Any], worker_id: int, name: str) -> Iterator[socket.socket]:
    """Have a worker claim a lease; yield its socket, which is readable while it holds the lease."""
    channel = WorkerChannel()
    with contextlib.closing(channel), concurrent.futures.ThreadPoolExecutor(1) as threads:
        asker = Asker(worker_id, 0, 0, channel.parent_end, None)
        asking = threads.submit(channel.child_end.ask, LeaseRequest(name))
        while not asking.done():
            requests.serve(asker, 0)
        answer, sock = asking.result()
        assert answer == Granted()
        assert sock is not None
        with sock:
            yield sock


def test_a_claim_survives_that_another_descriptor_with_its_number_was_ready() -> None:
    unused: Any = None
    requests = Requests[Any](unused, unused, lambda: True)
    with claimed(requests, 1, "job") as own:
        assert own.recv(1, socket.MSG_PEEK) == b"1"
        # poll(2) named these numbers before the claim was made.
        requests.collect(set(requests.interests(0)))
        assert own.recv(9, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"1"
        assert len(requests.interests(0)) == 1
    requests.collect(set(requests.interests(0)))
    assert requests.interests(0) == {}
