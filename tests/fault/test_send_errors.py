"""`send` fails: a shortage that passes loses no byte; any other error ends in a reset, never in a clean end."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.streams import client_context
from helpers.support import kill_session, need

SERVER = """
import asyncio, select, sys
if "no-epoll" in sys.argv:
    del select.epoll
import prefork

async def handle(stream):
    await stream.readline()
    for number in range(8):
        stream.write(b"%d " % number * 2000)
        await stream.drain()

async def main():
    tls = prefork.TLS(*sys.argv[1:3]) if sys.argv[1] else None
    async with prefork.TCPServer(handle, tls=tls, limits=prefork.Limits(write_timeout=0.4)) as server:
        server.listen(0, "127.0.0.1")
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

asyncio.run(main())
"""
EVERYTHING = b"".join(b"%d " % number * 2000 for number in range(8))


class Failing:
    """A server whose sends fail; with TLS or without."""

    def __init__(self, port: int, tls: bool, trace: Path) -> None:
        self._port = port
        self._tls = tls
        self._trace = trace

    def everything(self) -> bytes:
        """What a client gets. Raises ConnectionResetError."""
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", self._port), timeout=20))
            if self._tls:
                sock = stack.enter_context(
                    client_context().wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)
                )
            sock.sendall(b"go\n")
            received = bytearray()
            while chunk := sock.recv(65536):
                received += chunk
            return bytes(received)

    def failures(self) -> int:
        """How many sends have failed."""
        return self._trace.read_text().count("(INJECTED)")


@contextlib.contextmanager
def failing(folder: Path, certs: dict[str, str] | None, when: str, error: str, loop: str = "") -> Iterator[Failing]:
    need("strace")
    trace = folder / "trace"
    command = ["strace", "-qq", "-f", "--seccomp-bpf", "-o", str(trace), "-e", "trace=sendto"]
    command += ["-e", f"inject=sendto:error={error}:when={when}", sys.executable, "-c", SERVER]
    pair = [certs["cert"], certs["key"]] if certs else ["", ""]
    with subprocess.Popen([*command, *pair, loop], stdout=subprocess.PIPE, text=True, start_new_session=True) as server:
        try:
            assert server.stdout is not None
            yield Failing(int(server.stdout.readline()), certs is not None, trace)
        finally:
            # strace, and the server under it.
            kill_session(server.pid)


@pytest.fixture(params=["plain", "tls"])
def pair(request: pytest.FixtureRequest, certs: dict[str, str]) -> dict[str, str] | None:
    return certs if request.param == "tls" else None


@pytest.mark.parametrize(("error", "loop"), [("ENOBUFS", ""), ("ENOMEM", "no-epoll")])
def test_a_shortage_that_passes_loses_no_byte(
    tmp_path: Path, pair: dict[str, str] | None, error: str, loop: str
) -> None:
    # Every third, those of the handshake among them, until the end.
    with failing(tmp_path, pair, "1+3", error, loop) as server:
        assert server.everything() == EVERYTHING
        assert server.failures() >= 1


@pytest.mark.parametrize("loop", ["", "no-epoll"])
def test_a_shortage_that_stays_ends_in_a_reset_and_does_not_spin(
    tmp_path: Path, pair: dict[str, str] | None, loop: str
) -> None:
    with failing(tmp_path, pair, "4+1", "ENOBUFS", loop) as server:
        with pytest.raises(ConnectionResetError):
            server.everything()
        # A try every 50 ms until the write timeout of 0.4 s.
        assert 2 <= server.failures() <= 24


def test_any_other_error_ends_in_a_reset(tmp_path: Path, pair: dict[str, str] | None) -> None:
    with failing(tmp_path, pair, "4", "EIO") as server:
        with pytest.raises(ConnectionResetError):
            server.everything()
        assert server.failures() >= 1


def test_the_client_of_these_tests_sees_a_clean_end(tmp_path: Path, pair: dict[str, str] | None) -> None:
    """And would see one that comes too early."""
    with failing(tmp_path, pair, "60000", "EIO") as server:
        assert server.everything() == EVERYTHING
        assert server.failures() == 0
