"""What a client takes from a worker's console, which may be hostile, and which peers a kick is for."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.console.servers import Answer, WorkerLink, ask_workers
from prefork.core.console_protocol import (
    LINE_LIMIT,
    ConsoleRequest,
    Frame,
    Stack,
    WorkerRow,
    decode_line,
    decode_request,
    encode_end,
    encode_request,
    encode_rows,
    encode_stack,
)
from prefork.core.kicking import PeerFilter

ROW = WorkerRow(7, 1234, "10.0.0.1:5000", "open", 1.5, 0, "TLSv1.3")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


def test_what_is_encoded_is_decoded() -> None:
    assert decode_line(encode_rows([ROW, ROW._replace(number=8)])) == [ROW, ROW._replace(number=8)]
    assert decode_line(encode_end(kicked=3)) == {"kicked": 3}
    stack = Stack("Task-1", 3, (Frame("service.py", 5, "handle"),), "Future", ("10.0.0.1:5000",), False)
    assert decode_line(encode_stack(stack)) == stack
    request = ConsoleRequest("kick", ("10.0.0.0/8",), (1, 2), "prefork kick")
    assert decode_request(encode_request(request)) == request


@settings(max_examples=50)
@given(st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps({"rows": value, "stack": value}).encode())))
def test_any_line_is_a_value_or_an_error(line: bytes) -> None:
    for decode in (decode_line, decode_request):
        try:
            decode(line)  # type: ignore[operator]  # a union of two functions
        except ValueError:
            continue


@settings(max_examples=50)
@given(
    st.tuples(*[JSON] * 7)
    | st.tuples(st.just(1), st.just(1), st.text(), st.just("open"), st.just(1), st.just(1), st.text())
)
def test_a_row_is_printable_and_within_bounds(row: tuple[Any, ...]) -> None:
    try:
        (found,) = decode_line(json.dumps({"rows": [row]}).encode())
    except ValueError:
        return
    assert isinstance(found, WorkerRow)
    assert all(" " <= character <= "~" for character in found.peer + found.tls)
    assert len(found.peer) <= 120
    assert 0 <= found.age < 2**53


@pytest.mark.parametrize(
    "wrong",
    [
        [-1, 1, "x", "open", 1.0, 0, ""],
        [1, 1, "x", "dancing", 1.0, 0, ""],
        [1, 1, "x", "open", float("nan"), 0, ""],
        [1, 1, "x", "open", float("inf"), 0, ""],
        [True, 1, "x", "open", 1.0, 0, ""],
        [1, 2**60, "x", "open", 1.0, 0, ""],
        [1, 1, "x", "open", 1.0, 0],
    ],
)
def test_a_row_that_cannot_be_true_is_none(wrong: list[Any]) -> None:
    with pytest.raises(ValueError, match="not a"):
        decode_line(json.dumps({"rows": [wrong]}).encode())


def test_a_request_names_a_bounded_number_of_peers() -> None:
    with pytest.raises(ValueError, match="100"):
        decode_request(json.dumps({"command": "kick", "peers": ["10.0.0.1"] * 101}).encode())
    with pytest.raises(ValueError, match="nested"):
        decode_request(b"[" * 20_000)


@contextmanager
def worker(script: Any) -> Iterator[WorkerLink]:
    """A worker whose console does what `script` does with its end of the client's connection."""
    client, console = socket.socketpair()
    client.setblocking(False)
    link = WorkerLink(0, 1, 0, "ready", True, client)

    def run() -> None:
        with console, suppress(OSError):
            console.recv(1000)
            script(console)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield link
    finally:
        client.close()
        thread.join(10)
    assert not thread.is_alive()


def ask(link: WorkerLink, **times: float) -> Answer | None:
    return ask_workers([link], ConsoleRequest("connections"), **times).get(link)


def flood(console: socket.socket) -> None:
    line = encode_rows([ROW] * 1000)
    while True:
        console.sendall(line)


def endless_line(console: socket.socket) -> None:
    while True:
        console.sendall(b'{"rows": [' + b" " * 100_000)


def test_a_worker_that_floods_is_given_up() -> None:
    with worker(endless_line) as link:
        answer = ask(link, first=10, total=20)
        assert answer is not None
        assert answer.error == f"a line has {LINE_LIMIT} bytes at the most" or "too long" in answer.error
        # Its connection is closed, otherwise the rest would be taken for the next answer.
        assert link.sock is None
    with worker(flood) as link:
        answer = ask(link, first=10, total=0.5)
        assert answer is not None
        assert not answer.is_whole


def test_a_worker_that_trickles_or_is_silent_costs_the_time_it_has() -> None:
    def trickle(console: socket.socket) -> None:
        while True:
            console.sendall(b" ")
            time.sleep(0.01)

    with worker(trickle) as link:
        started = time.monotonic()
        answer = ask(link, first=5, total=0.3)
        assert time.monotonic() - started < 5
        assert answer is not None
        assert not answer.is_whole
    with worker(lambda console: console.recv(1)) as link:
        assert ask(link, first=0.05) is None
        assert link.sock is None


def test_a_worker_that_lies_is_not_believed() -> None:
    def lie(console: socket.socket) -> None:
        rows = [["1", 2, "\x1b[2J", "open", 1, 1, ""]]
        console.sendall(json.dumps({"rows": rows}).encode() + b"\n")

    with worker(lie) as link:
        answer = ask(link, first=10)
        assert answer is not None
        assert answer.error.startswith("not a ")
        assert answer.rows == []

    def steer(console: socket.socket) -> None:
        console.sendall(encode_rows([ROW._replace(peer="\x1b]0;x\x07\u202e", tls="\n")]) + encode_end(error="\x1b[2J"))

    with worker(steer) as link:
        answer = ask(link, first=10)
        assert answer is not None
        assert answer.rows[0].peer == "\\x1b]0;x\\x07\\u202e"
        assert answer.error == "\\x1b[2J"


PEERS = [
    ("10.0.0.1:5000", ("10.0.0.1", 5000), True),
    ("10.0.0.1:5000", ("10.0.0.1", 5001), False),
    ("10.0.0.1", ("10.0.0.1", 5001), True),
    ("10.0.0.0/8", ("10.9.9.9", 1), True),
    ("10.0.0.0/8", ("11.9.9.9", 1), False),
    ("10.0.0.0/8", ("::ffff:10.9.9.9", 1, 0, 0), True),
    ("[::1]:80", ("::1", 80, 0, 0), True),
    ("::1", ("::1", 80, 0, 0), True),
    ("fe80::/10", ("fe80::1%eth0", 80, 0, 2), True),
    ("2001:db8::/32", ("10.0.0.1", 80), False),
    ("0.0.0.0/0", "/run/socket", False),
    ("0.0.0.0/0", "", False),
]


@pytest.mark.parametrize(("named", "address", "expected"), PEERS)
def test_peers_are_named_by_address_port_or_network(named: str, address: Any, expected: bool) -> None:
    assert PeerFilter([named]).matches(address) is expected


@pytest.mark.parametrize("wrong", ["", "localhost", "10.0.0.1:http", "10.0.0.1/8", "1-2", "::1:80:", "10.0.0.256"])
def test_what_is_no_peer_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="no peer"):
        PeerFilter([wrong])


@given(st.text(max_size=30))
def test_any_text_is_a_peer_or_an_error(text: str) -> None:
    try:
        PeerFilter([text]).matches_text(text)
    except ValueError:
        return
