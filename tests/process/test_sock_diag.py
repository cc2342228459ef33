"""The kernel's own facts about sockets: connections, listeners, accept queues, and answers that are damaged."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.sock_diag import KernelRefusedError, TCPSocket, format_endpoint, parse_answer
from prefork.core.tcp_info import TCPInfo
from prefork.system.sock_diag import (
    accept_queue,
    find_connections,
    find_listeners,
    find_unix_sockets,
    socket_inodes,
)


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_connections_and_queues_are_those_of_the_port(host: str, family: int) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, 0), family=family, backlog=7))
        port = listener.getsockname()[1]
        clients = [stack.enter_context(socket.create_connection((host, port))) for _ in range(3)]
        accepted = stack.enter_context(listener.accept()[0])
        clients[0].sendall(b"x" * 1000)
        assert accepted.recv(400, socket.MSG_WAITALL) == b"x" * 400
        # What waits in the accept queue belongs to no process yet.
        (found,), complete = find_connections([(family, port)], 1)
        assert complete
        assert found.inode == os.fstat(accepted.fileno()).st_ino
        assert socket_inodes(os.getpid())[found.inode] == accepted.fileno()
        assert found.local[1] == port
        peer, own = clients[0].getsockname(), f"[{host}]" if family == socket.AF_INET6 else host
        assert format_endpoint(found.remote) == f"{own}:{peer[1]}"
        assert found.receive_queue == 600
        assert (found.fact(TCPInfo.BYTES_RECEIVED), found.fact(TCPInfo.STATE)) == (1000, 1)
        assert (found.listens, found.uid) == (False, os.geteuid())
        (queue,) = find_listeners([port], 1)
        assert (queue.listens, queue.receive_queue, queue.send_queue) == (True, 2, 7)
        assert accept_queue(listener) == (2, 7)


def test_an_address_of_ipv4_is_shown_as_such_on_a_socket_of_ipv6() -> None:
    assert format_endpoint((bytes(10) + b"\xff\xff\x7f\0\0\1", 80)) == "127.0.0.1:80"
    assert format_endpoint((bytes(15) + b"\1", 80)) == "[::1]:80"


def test_unix_sockets_tell_their_names_and_queues() -> None:
    name = f"\0prefork-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(name)
        listener.listen(5)
        client.connect(name)
        assert accept_queue(listener) == (1, 5)
        sockets, complete = find_unix_sockets(1)
        assert complete
        (found,) = (each for each in sockets if each.inode == os.fstat(listener.fileno()).st_ino)
        assert (found.name, found.listens, found.receive_queue) == (name.encode(), True, 1)
        # The kernel has made the other end already, though nothing has accepted it.
        assert os.fstat(client.fileno()).st_ino in {each.inode for each in sockets}


@given(st.binary(max_size=400))
def test_a_damaged_answer_is_an_error_and_nothing_else(data: bytes) -> None:
    found: list[object] = []
    header = struct.pack("=IHHII", 16 + len(data), 20, 0, 0, 0)
    for answer in (data, header + data, header + b"\x01" + data, header + b"\x02" + data):
        try:
            parse_answer(answer, found)  # type: ignore[arg-type]  # only appended to
        except (ValueError, KernelRefusedError):
            continue
    assert all(isinstance(each, tuple) for each in found)


def test_a_refusal_of_the_kernel_is_raised() -> None:
    refused = struct.pack("=IHHIIi", 20, 2, 0, 0, 0, -1)
    with pytest.raises(KernelRefusedError) as caught:
        parse_answer(refused, [])
    assert caught.value.errno == 1


def test_a_field_that_the_kernel_does_not_have_is_none() -> None:
    short = TCPSocket(1, 2, (bytes(4), 1), (bytes(4), 2), 1, False, 0, 0, 0, bytes(8), bytes(100), 0)
    assert short.fact(TCPInfo.RTT) == 0
    assert short.fact(TCPInfo.BYTES_SENT) is None
