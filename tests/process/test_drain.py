"""How a worker ends: what the kernel has accepted is served, handlers are told, new connections are refused at once."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import time
from pathlib import Path

import pytest
from helpers.proc import open_files
from helpers.support import wait_until

from prefork.testing import Server, run_server

SERVICE = """
import asyncio, os, time

async def handle(stream):
    async for line in stream:
        stream.write(b"%d\\n" % os.getpid())

async def polite(stream):
    await stream.send(b"hello\\n")
    await stream.wait_draining()
    assert stream.draining
    await stream.send(b"goodbye\\n")

class Keeps(asyncio.Protocol):
    # Keeps its connection until it is told. Then it ends it at once, or after the answer that it is preparing.
    answering = draining = False

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.answering = True
        if b"slow" in data:
            self.transport.write(b"wait\\n")
        asyncio.get_running_loop().call_later(0.5 if b"slow" in data else 0, self.answer)

    def answer(self):
        self.transport.write(b"%d\\n" % os.getpid())
        self.answering = False
        if self.draining:
            self.transport.close()

    def drain(self):
        self.draining = True
        if not self.answering:
            self.transport.close()

class Broken(Keeps):
    async def drain(self):
        self.transport.close()
        raise ValueError("this drain is broken")

async def made():
    return Broken

async def deaf(stream):
    await stream.send(b"hello\\n")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def connect_code(server: Server) -> int:
    with socket.socket() as sock:
        sock.settimeout(20)
        return sock.connect_ex(("127.0.0.1", server.port))


def open_connections(pid: int) -> int:
    links = open_files(pid).values()
    return sum(link.startswith("socket:") for link in links)


@pytest.mark.parametrize("options", [[], ["--reuse-port"]])
def test_after_a_stop_new_connections_are_refused_while_open_ones_end(folder: Path, options: list[str]) -> None:
    path = folder / "socket"
    bind = ["127.0.0.1:0", f"unix:{path}"]
    with run_server("service:handle", "-w", "2", *options, bind=bind, cwd=folder) as server:
        with connect(server) as sock, sock.makefile("rb") as file:
            sock.sendall(b"one\n")
            assert file.readline()
            server.signal(signal.SIGTERM)
            wait_until(lambda: connect_code(server) == errno.ECONNREFUSED, what="a refusal, not a queue without end")
            wait_until(lambda: not path.exists())
            sock.sendall(b"two\n")
            assert file.readline()
            assert server._process.poll() is None
        assert server.wait() == 0


def test_a_worker_that_drains_after_a_reload_does_not_keep_the_port(folder: Path) -> None:
    with run_server("service:handle", "-w", "1", cwd=folder) as server:
        with connect(server) as sock:
            sock.sendall(b"one\n")
            assert sock.recv(100)
            server.signal(signal.SIGHUP)
            wait_until(lambda: "reloaded:" in server.stderr())
            assert len(server.worker_pids()) == 2
            server.signal(signal.SIGTERM)
            wait_until(lambda: connect_code(server) == errno.ECONNREFUSED)
            wait_until(lambda: len(server.worker_pids()) == 1)
        assert server.wait() == 0


@pytest.mark.parametrize("options", [[], ["--reuse-port"]])
def test_connections_queued_at_a_stop_are_served(folder: Path, options: list[str]) -> None:
    with run_server("service:handle", "-w", "3", *options, cwd=folder) as server:
        workers = server.worker_pids()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        queued = [connect(server) for _ in range(40)]
        for sock in queued:
            sock.sendall(b"hello\n")
        # One of them dies with its queue; the others have it, too.
        os.kill(workers[0], signal.SIGKILL)
        server.signal(signal.SIGTERM)
        wait_until(lambda: "stopping (SIGTERM)" in server.stderr())
        for pid in workers[1:]:
            os.kill(pid, signal.SIGCONT)
        for sock in queued:
            assert sock.makefile("rb").readline()
            sock.close()
        assert server.wait() == 0


def at_a_stop_beyond_the_limit(server: Server, connections: int) -> int:
    """Stop a server that has more connections than its limit; return how many were served. It refuses the rest."""
    socks = [connect(server) for _ in range(connections)]
    wait_until(lambda: "paused" in server.stderr(), what="accepting rests")
    server.signal(signal.SIGTERM)
    answers = []
    for sock in socks:
        with sock, sock.makefile("rb") as file:
            answers.append(file.read())
    assert server.wait() == 0
    served = answers.count(b"hello\ngoodbye\n")
    assert sorted(answers) == [b"busy\n"] * (connections - served) + [b"hello\ngoodbye\n"] * served
    assert "refused 127.0.0.1" in server.stderr()
    return served


def test_connections_queued_beyond_the_limit_at_a_stop_are_refused(folder: Path) -> None:
    options = ["-w", "1", "--max-connections", "2", "--refusal", "busy\n"]
    with run_server("service:polite", *options, cwd=folder) as server:
        assert at_a_stop_beyond_the_limit(server, 6) == 2


def test_connections_queued_at_the_descriptor_reserve_at_a_stop_are_refused(folder: Path) -> None:
    with run_server("service:polite", "-w", "1", "--refusal", "busy\n", cwd=folder) as server:
        (worker,) = server.worker_pids()
        # 32 of them are not for connections.
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (52, 52))
        assert 0 < at_a_stop_beyond_the_limit(server, 40) < 52 - 32
        assert "nearly all descriptors" in server.stderr()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_connection_that_was_accepted_and_has_sent_nothing_is_served(folder: Path, number: int) -> None:
    with run_server("service:handle", "-w", "2", cwd=folder) as server:
        workers = server.worker_pids()
        before = sum(map(open_connections, workers))
        silent = [connect(server) for _ in range(50)]
        wait_until(lambda: sum(map(open_connections, workers)) == before + 50, what="all of them accepted")
        server.signal(number)
        wait_until(lambda: "stopping (" in server.stderr() or "reloaded:" in server.stderr())
        for sock in silent:
            sock.sendall(b"at last\n")
        for sock in silent:
            assert int(sock.makefile("rb").readline()) in workers
            sock.close()
        if number == signal.SIGTERM:
            assert server.wait() == 0
        else:
            assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_a_stop_handlers_are_told_and_the_worker_ends_with_the_last(folder: Path, number: int) -> None:
    with run_server("service:polite", "-w", "2", cwd=folder) as server:
        idle = [connect(server) for _ in range(100)]
        files = [sock.makefile("rb") for sock in idle]
        assert {file.readline() for file in files} == {b"hello\n"}
        server.signal(number)
        for file in files:
            assert file.readline() == b"goodbye\n"
            assert file.read() == b""
        # The server waits for the end of its peers, which might still be sending.
        for sock, file in zip(idle, files, strict=True):
            file.close()
            sock.close()
        assert server.wait() == 0
        assert server.stderr().count(" closed, none aborted") == 2


def test_connections_that_stay_are_aborted_at_the_drain_timeout_and_counted(folder: Path) -> None:
    with run_server("service:deaf", "-w", "1", "--drain-timeout", "0.3", cwd=folder) as server:
        silent = [connect(server) for _ in range(3)]
        for sock in silent:
            assert sock.recv(6) == b"hello\n"
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started >= 0.3
        assert "drained: 0 connections closed, 3 aborted (--drain-timeout)" in server.stderr()
        assert "3 tasks ignored cancellation and were abandoned" in server.stderr()
        assert "killed" not in server.stderr()
        for sock in silent:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
            sock.close()


@pytest.mark.parametrize(
    "numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGQUIT,)]
)
def test_a_second_signal_or_sigquit_does_not_wait_for_connections(folder: Path, numbers: tuple[int, ...]) -> None:
    with run_server("service:deaf", "-w", "2", cwd=folder) as server, connect(server) as sock:
        assert sock.recv(6)
        for number in numbers:
            server.signal(number)
            wait_until(lambda: "stopping" in server.stderr())
        # Less than the 30 s of --drain-timeout.
        assert server.wait(20) == 0
        assert "stopping at once" in server.stderr()


@pytest.mark.parametrize("how", ["stop", "reload"])
def test_protocols_are_told_and_end_idle_connections_at_once(folder: Path, how: str) -> None:
    """The drain timeout is longer than the test may take."""
    with run_server("service:Keeps", "-w", "2", "--drain-timeout", "300", cwd=folder) as server:
        workers = server.worker_pids()
        idle = [connect(server) for _ in range(20)]
        for sock in idle:
            sock.sendall(b"quick\n")
            assert int(sock.makefile("rb").readline()) in workers
        busy = [connect(server) for _ in range(4)]
        for sock in busy:
            sock.sendall(b"slow\n")
            assert sock.recv(5) == b"wait\n"
        server.signal(signal.SIGTERM if how == "stop" else signal.SIGHUP)
        for sock in idle:
            assert sock.recv(1) == b""
            sock.close()
        for sock in busy:
            with sock.makefile("rb") as file:
                assert int(file.readline()) in workers
                assert file.read() == b""
            sock.close()
        if how == "reload":
            wait_until(lambda: server.stderr().count("drained: ") == 2)
            assert server.stop() == 0
        else:
            assert server.wait() == 0
        assert server.stderr().count(" closed, none aborted") >= 2


def test_a_drain_of_a_protocol_that_fails_is_logged_and_the_worker_ends(folder: Path) -> None:
    with run_server("service:made", "-w", "1", "--drain-timeout", "300", cwd=folder) as server:
        idle = [connect(server) for _ in range(3)]
        for sock in idle:
            sock.sendall(b"quick\n")
            assert sock.makefile("rb").readline()
        assert server.stop() == 0
        assert server.stderr().count("ValueError: this drain is broken") >= 1
        assert "drained: 3 connections closed, none aborted" in server.stderr()
        for sock in idle:
            sock.close()


# --- old workers ------------------------------------------------------------------------------------------------------


def open_one(server: Server) -> socket.socket:
    sock = connect(server)
    assert sock.recv(6) == b"hello\n"
    return sock


def reload(server: Server) -> None:
    generations = server.stderr().count("reloaded:")
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.stderr().count("reloaded:") > generations)


@pytest.mark.slow
def test_connections_of_old_workers_outlive_the_drain_timeout_until_too_many_of_them_drain(folder: Path) -> None:
    """A stop then ends what drains without limit, within its drain timeout."""
    with run_server("service:deaf", "-w", "1", "--drain-timeout", "0.3", cwd=folder) as server:
        socks = []
        for _ in range(2):
            socks.append(open_one(server))
            reload(server)
        time.sleep(0.5)  # longer than the drain timeout: what must not happen has no end to wait for
        for sock in socks:
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sock.recv(1)
        socks.append(open_one(server))
        reload(server)
        socks[0].settimeout(20)
        with pytest.raises(ConnectionResetError):
            socks[0].recv(1)
        assert "still drains, and so do two newer ones of its slot: its 1 connection will be aborted" in server.stderr()
        wait_until(lambda: "1 aborted (--drain-timeout)" in server.stderr())
        assert server.stop() == 0
        assert server.stderr().count("drained: 0 connections closed, 1 aborted (--drain-timeout)") == 3
        assert "killed" not in server.stderr()
        for sock in socks:
            sock.close()


@pytest.mark.slow
def test_old_workers_have_the_drain_timeout_of_reloads(folder: Path) -> None:
    with run_server("service:deaf", "-w", "1", "--reload-drain-timeout", "0.2", cwd=folder) as server:
        with open_one(server) as sock:
            reload(server)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        wait_until(lambda: "1 aborted (--reload-drain-timeout)" in server.stderr())
        assert server.stop() == 0


# --- a service with a handler of its own for SIGTERM ------------------------------------------------------------------

OWN_HANDLERS = """
import asyncio, signal

def mine(*_):
    print("the service's own handler ran", flush=True)

class Service:
    def __init__(self, how):
        self.how = how

    async def start(self):
        if self.how == "signal":
            signal.signal(signal.SIGTERM, mine)
        if self.how == "loop":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, mine)

    async def handle(self, stream):
        if self.how == "handler":
            signal.signal(signal.SIGTERM, mine)
        await stream.send(b"hello\\n")
        await stream.wait_draining()
        await stream.send(b"goodbye\\n")

    async def stop(self):
        pass

at_start, by_loop, in_handler, plain = Service("signal"), Service("loop"), Service("handler"), Service("")
"""
AT_IMPORT = "signal.signal(signal.SIGTERM, mine)\n"


@pytest.mark.parametrize(
    ("service", "at_import"), [("at_start", ""), ("by_loop", ""), ("in_handler", ""), ("plain", AT_IMPORT)]
)
def test_a_service_that_handles_sigterm_itself_drains_all_the_same_and_is_told(
    folder: Path, service: str, at_import: str
) -> None:
    (folder / "own.py").write_text(OWN_HANDLERS + at_import)
    with run_server(f"own:{service}", "-w", "1", cwd=folder) as server, open_one(server) as sock:
        server.signal(signal.SIGTERM)
        assert sock.recv(100) == b"goodbye\n"
        sock.close()
        assert server.wait() == 0
        log = server.stderr()
        assert log.count("the service handles SIGTERM itself") == 1, log
        assert "own.mine" in log or service == "by_loop"
        assert "drained: 1 connection closed, none aborted" in log


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_worker_that_gets_sigterm_from_elsewhere_drains(folder: Path, loop: str) -> None:
    pytest.importorskip(loop)
    with run_server("service:polite", "-w", "1", "--loop", loop, cwd=folder) as server, open_one(server) as sock:
        (worker,) = server.worker_pids()
        os.kill(worker, signal.SIGTERM)
        assert sock.recv(100) == b"goodbye\n"
        sock.close()
        wait_until(lambda: "drained: 1 connection closed, none aborted" in server.stderr())
        assert server.stop() == 0
