"""Run the examples that stand between a client and a server, and look at both ends of them."""

from __future__ import annotations

import contextlib
import functools
import importlib
import signal
import socket
import ssl
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from helpers.support import wait_until
from hypothesis import given
from hypothesis import strategies as st

from prefork.testing import Server, run_server

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMEOUT = 20.0
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Ends:
    """A proxy between two sockets of the test."""

    def __init__(self, server: Server, backend: socket.socket) -> None:
        self.server = server
        self.backend = backend

    @contextlib.contextmanager
    def connected(self, first: bytes = b"") -> Iterator[tuple[socket.socket, socket.socket]]:
        """Yield the client's socket, which has sent `first`, and the one that the backend has accepted."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=TIMEOUT) as client:
            client.sendall(first)
            accepted, _ = self.backend.accept()
            accepted.settimeout(TIMEOUT)
            with accepted:
                yield client, accepted


@contextlib.contextmanager
def backend() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        yield listener


def where(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


@pytest.fixture(scope="module")
def proxy() -> Iterator[Ends]:
    with backend() as listener, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        backends = f"{where(dead)},{where(listener)}"
        with run_server("proxy:handle", "--workers", "1", cwd=EXAMPLES, env={"BACKENDS": backends}) as server:
            yield Ends(server, listener)
            assert "Traceback" not in server.stderr(), server.stderr()


def test_proxy_passes_both_directions_on_and_the_end_of_each(proxy: Ends) -> None:
    with proxy.connected() as (client, accepted):
        client.sendall(b"question")
        assert accepted.recv(100) == b"question"
        accepted.sendall(b"answer")
        assert client.recv(100) == b"answer"
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(100) == b""
        accepted.sendall(b"late answer")
        accepted.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").read() == b"late answer"


@pytest.mark.parametrize("from_client", [True, False])
def test_proxy_passes_a_reset_on(proxy: Ends, from_client: bool) -> None:
    with proxy.connected(b"x") as (client, accepted):
        assert accepted.recv(100) == b"x"
        one, other = (client, accepted) if from_client else (accepted, client)
        reset(one)
        with pytest.raises(ConnectionResetError):
            other.recv(100)


def test_proxy_holds_a_sender_up_that_is_faster_than_its_reader(proxy: Ends) -> None:
    piece = b"p" * 65536
    with proxy.connected() as (client, accepted):
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.settimeout(0.5)
        sent = 0
        # The buffers of the kernel take what the proxy leaves: less than this.
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += client.send(piece)
        assert sent < 64 << 20
        client.shutdown(socket.SHUT_WR)
        received = 0
        while data := accepted.recv(1 << 20):
            received += len(data)
        assert received == sent


@pytest.mark.parametrize("version", ["1", "2"])
def test_proxy_tells_the_backend_of_the_client_and_drains_when_they_are_done(version: str) -> None:
    with backend() as listener:
        env = {"BACKENDS": where(listener), "SEND_PROXY": version}
        with (
            run_server("proxy:handle", "--workers", "1", cwd=EXAMPLES, env=env) as server,
            Ends(server, listener).connected(b"hello") as (client, accepted),
        ):
            (host, port), here = client.getsockname(), client.getpeername()
            server.signal(signal.SIGTERM)
            wait_until(lambda: "draining" in server.stderr(), TIMEOUT, "the drain")
            client.shutdown(socket.SHUT_WR)
            received = accepted.makefile("rb").read()
            accepted.sendall(b"goodbye")
            accepted.shutdown(socket.SHUT_WR)
            assert client.makefile("rb").read() == b"goodbye"
            assert server.wait() == 0
            # It may have ended before its worker began to drain; then it is not one of those that the drain has closed.
            assert " closed, none aborted" in server.stderr()
    if version == "1":
        assert received == f"PROXY TCP4 {host} {here[0]} {port} {here[1]}\r\nhello".encode()
    else:
        ends = socket.inet_aton(host) + socket.inet_aton(here[0]) + struct.pack("!HH", port, here[1])
        assert received == b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + ends + b"hello"


def test_proxy_closes_the_connection_when_no_backend_can_be_reached() -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        with (
            run_server("proxy:handle", "--workers", "1", cwd=EXAMPLES, env={"BACKENDS": where(dead)}) as server,
            socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as client,
        ):
            assert client.recv(100) == b""
            wait_until(lambda: "no backend can be reached" in server.stderr(), TIMEOUT, "the failure in the log")


# --- the SNI router ---------------------------------------------------------------------------------------------------


@functools.cache
def sni_router() -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("sni_router")
    finally:
        sys.path.remove(str(EXAMPLES))


@functools.cache
def client_hello(name: str | None) -> bytes:
    """Return the record with the ClientHello of OpenSSL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def in_records(message: bytes, size: int) -> bytes:
    """Return the message in records of `size` bytes each."""
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2) + piece for piece in pieces)


@pytest.fixture(scope="module")
def router() -> Iterator[tuple[Server, dict[str, socket.socket]]]:
    with contextlib.ExitStack() as listeners:
        backends = {name: listeners.enter_context(backend()) for name in ("a.example", "*.b.example", "c.d.example")}
        routes = ",".join(f"{name}={where(listener)}" for name, listener in backends.items())
        with run_server("sni_router:handle", "--workers", "1", cwd=EXAMPLES, env={"ROUTES": routes}) as server:
            yield server, backends
            assert "Traceback" not in server.stderr(), server.stderr()


def test_sni_router_passes_every_byte_to_the_backend_of_the_name(
    router: tuple[Server, dict[str, socket.socket]],
) -> None:
    server, backends = router
    for name, route in (("a.example", "a.example"), ("x.B.example", "*.b.example"), ("c.d.example", "c.d.example")):
        hello = client_hello(name)
        for sent in (hello + b"early data", in_records(hello[5:], 7), hello):
            with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for at in range(0, len(sent), 99):
                    client.send(sent[at : at + 99])
                client.shutdown(socket.SHUT_WR)
                accepted, _ = backends[route].accept()
                with accepted:
                    accepted.settimeout(TIMEOUT)
                    assert accepted.makefile("rb").read() == sent
                    accepted.sendall(b"answer")
                assert client.recv(100) == b"answer"


def test_sni_router_closes_what_it_cannot_route(router: tuple[Server, dict[str, socket.socket]]) -> None:
    server, _ = router
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as client:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with pytest.raises(ssl.SSLError, match="(?i)unrecognized.name"):
            context.wrap_socket(client, server_hostname="unknown.example")
    hello = client_hello("a.example")
    alert = sni_router().UNRECOGNIZED_NAME
    too_large = in_records(b"\x01\x00\xff\xff" + bytes(20000), 16384)
    for sent, answer in (
        (client_hello(None), alert),
        (client_hello("a.b.b.example"), alert),
        (client_hello("b.example"), alert),
        (b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", b""),
        (hello[:-1], b""),
        (hello[:5] + b"\x02" + hello[6:], b""),
        (b"\x16\x03\x01\x00\x00" * 9, b""),
        (too_large, b""),
        (b"", b""),
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            assert client.makefile("rb").read() == answer, sent[:50]


label = st.from_regex(r"[a-z0-9_-]{1,20}", fullmatch=True)


@given(st.lists(label, min_size=1, max_size=5).map(".".join))
def test_the_name_of_a_hello_is_found_and_no_part_of_a_hello_is_taken_for_one(name: str) -> None:
    parse, error = sni_router().server_name, sni_router().HelloError
    host = b"\x00" + len(name).to_bytes(2) + name.encode()
    names = len(host).to_bytes(2) + host
    extensions = b"\x00\x17\x00\x00" + b"\x00\x00" + len(names).to_bytes(2) + names
    fixed = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    for body, expected in ((fixed + len(extensions).to_bytes(2) + extensions, name), (fixed, "")):
        assert parse(b"\x01" + len(body).to_bytes(3) + body) == expected
        for cut in range(len(body)):
            if cut != len(fixed):
                with pytest.raises(error):
                    parse(b"\x01" + cut.to_bytes(3) + body[:cut])
        for wrong in (b"\x01" + len(body).to_bytes(3) + body + b"x", b"\x02" + len(body).to_bytes(3) + body):
            with pytest.raises(error):
                parse(wrong)


@given(st.binary(max_size=300), st.integers(0, 250), st.binary(max_size=8))
def test_no_bytes_make_the_parser_raise_anything_else(noise: bytes, at: int, patch: bytes) -> None:
    hello = bytearray(client_hello("a.example")[5:])
    hello[at : at + len(patch)] = patch
    for message in (noise, bytes(hello), b"\x01" + len(noise).to_bytes(3) + noise):
        with contextlib.suppress(sni_router().HelloError):
            assert isinstance(sni_router().server_name(message), str)
