"""Inboxes: connections go in and out, and whatever a hostile worker puts in or does to them stops nothing else."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import socket
import struct
from collections.abc import Iterator

import pytest

from prefork.system.inboxes import CAPACITY, Inboxes


@pytest.fixture
def inboxes() -> Iterator[Inboxes]:
    made = Inboxes(2)
    yield made
    made.close()


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        with accepted, client:
            yield accepted


def forge(inboxes: Inboxes, data: bytes, *fds: int) -> None:
    """Send what no worker of prefork sends."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    inboxes._pairs[0][0].sendmsg([data], rights, socket.MSG_DONTWAIT)


def test_a_connection_arrives_as_it_was_sent(inboxes: Inboxes, connection: socket.socket) -> None:
    assert inboxes.receive(0) is None
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    assert inboxes.send(0, connection.fileno(), 7)
    assert (inboxes.waiting(0), inboxes.waiting(1)) == (1, 0)
    message = inboxes.receive(0)
    assert message is not None
    with message[0] as received:
        assert message[1] == 7
        assert received.getpeername() == connection.getpeername()
        assert not os.get_inheritable(received.fileno())
        assert received.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[:4] == bytes(4), "a close never blocks"
    assert inboxes.waiting(0) == 0


def test_an_inbox_is_bounded(inboxes: Inboxes, connection: socket.socket) -> None:
    count = 0
    while inboxes.send(0, connection.fileno()):
        count += 1
        assert count == inboxes.waiting(0)
    assert count == CAPACITY
    assert inboxes.send(1, connection.fileno()), "another one has room"


def test_a_slot_without_an_inbox_takes_nothing(inboxes: Inboxes, connection: socket.socket) -> None:
    assert inboxes.send(2, connection.fileno()) is False
    assert inboxes.waiting(2) == 0


@pytest.mark.parametrize("kind", ["no descriptor", "a file", "a pipe", "a listener", "datagrams", "two", "other data"])
def test_what_is_no_connection_is_discarded(inboxes: Inboxes, connection: socket.socket, kind: str) -> None:
    with contextlib.ExitStack() as stack:
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        file = stack.enter_context(open("/dev/null"))
        forged = {
            "no descriptor": [],
            "a file": [file.fileno()],
            "a pipe": [reader],
            "a listener": [listener.fileno()],
            "datagrams": [datagrams.fileno()],
            "other data": [connection.fileno()],
            "two": [connection.fileno(), reader],
        }
        before = sorted(os.listdir("/proc/self/fd"))
        forge(inboxes, b"123" if kind == "other data" else b"12345678", *forged[kind])
        with pytest.raises(ValueError, match="socket"):
            inboxes.receive(0)
        assert sorted(os.listdir("/proc/self/fd")) == before, "a descriptor is left open"
    assert inboxes.send(0, connection.fileno())
    received = inboxes.receive(0)
    assert received is not None
    received[0].close()


@pytest.mark.parametrize("end", [0, 1])
def test_an_inbox_that_was_shut_down_takes_nothing_and_says_so(
    inboxes: Inboxes, connection: socket.socket, end: int
) -> None:
    inboxes._pairs[0][end].shutdown(socket.SHUT_RDWR)
    assert inboxes.send(0, connection.fileno()) is False
    with pytest.raises(EOFError, match="inbox 0 was shut down"):
        inboxes.receive(0)


def test_an_inbox_that_was_shut_down_is_replaced_and_one_in_use_is_kept(
    inboxes: Inboxes, connection: socket.socket
) -> None:
    assert inboxes.send(1, connection.fileno())
    inboxes._pairs[0][0].shutdown(socket.SHUT_RDWR)
    for slot in range(3):
        inboxes.repair(slot)
    assert inboxes.waiting(1) == 1
    assert inboxes.send(0, connection.fileno())
    for slot in range(2):
        received = inboxes.receive(slot)
        assert received is not None
        received[0].close()


def test_without_a_free_descriptor_the_connection_stays(inboxes: Inboxes, connection: socket.socket) -> None:
    assert inboxes.send(0, connection.fileno())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), limits[1]))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        with pytest.raises(OSError, match="Too many open files"):
            inboxes.receive(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)
    received = inboxes.receive(0)
    assert received is not None
    received[0].close()


def test_a_flag_that_another_process_has_changed_does_not_block(inboxes: Inboxes, connection: socket.socket) -> None:
    for sock in inboxes._pairs[0]:
        os.set_blocking(sock.fileno(), True)
    assert inboxes.receive(0) is None
    while inboxes.send(0, connection.fileno()):
        pass
