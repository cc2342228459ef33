"""Accepting when the kernel says no: connections that died in the queue, no descriptors left, a listener that broke."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.streams import FLAVOURS, World, eventually, observed_server
from helpers.support import need, need_root, run_script, slow

import prefork
from prefork.events import AcceptPaused, Event, ListenerBroken
from prefork.net.acceptor import Acceptor
from prefork.testing import run_server

RESET = struct.pack("ii", 1, 0)


@pytest.fixture(params=[flavour for flavour in FLAVOURS if flavour != "no-epoll"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


async def test_batches_let_other_tasks_run_while_connections_are_pending(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=600) as listener:
        clients = []
        for _ in range(500):
            client = socket.create_connection(listener.getsockname())
            clients.append(client)
        accepted: list[socket.socket] = []
        turns: list[int] = []

        def count() -> None:
            turns.append(len(accepted))
            if len(accepted) < 500:
                loop.call_soon(count)

        loop = asyncio.get_running_loop()
        remove = prefork.add_accept_handler(listener, lambda connection, _: accepted.append(connection))
        loop.call_soon(count)
        await eventually(lambda: len(accepted) == 500)
        remove()
        remove()
        steps = [later - earlier for earlier, later in itertools.pairwise(turns)]
        assert max(steps) <= 8
        assert all(not connection.getblocking() and not connection.get_inheritable() for connection in accepted)
        for each in (*clients, *accepted):
            each.close()


async def test_removing_the_acceptor_within_a_batch_drops_no_connection(world: World) -> None:
    """What was accepted is handed over; what was not stays in the queue for the next."""
    with socket.create_server(("127.0.0.1", 0), backlog=300) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(200)]
        served: list[socket.socket] = []
        acceptors: list[Acceptor] = []
        turn = 0
        while len(served) < 200:
            turn += 1
            quota = len(served) + turn % 11 + 1

            def accepted(connection: socket.socket, _: object, quota: int = quota) -> None:
                served.append(connection)
                if len(served) == quota:
                    acceptors[-1].close()

            acceptors.append(Acceptor(listener, accepted))
            await eventually(lambda quota=quota: len(served) >= min(quota, 200))
            assert len(served) <= quota
            acceptors[-1].close()
        for number, client in enumerate(clients):
            client.sendall(b"%d\n" % number)
        loop = asyncio.get_running_loop()
        heard = {int(await loop.sock_recv(connection, 100)) for connection in served}
        assert heard == set(range(200))
        for each in (*clients, *served):
            each.close()


async def test_clients_that_left_before_they_are_accepted_are_skipped(world: World) -> None:
    async def echo(stream: prefork.Stream) -> None:
        async for line in stream:
            stream.write(line)

    events: list[Event] = []
    async with observed_server(echo, events.append) as server:
        server.listen(0, "127.0.0.1", backlog=600)
        where = server.sockets[0].getsockname()
        for _ in range(300):
            with socket.create_connection(where) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        reader, writer = await asyncio.open_connection(*where)
        writer.write(b"alive\n")
        assert await reader.readline() == b"alive\n"
        writer.close()
        await eventually(lambda: server.connections == 0)
    assert all(event.level <= 10 for event in events), events


async def test_a_callback_that_raises_ends_its_connection_and_is_an_event(world: World) -> None:
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accepted(connection: socket.socket, _: object) -> None:
            raise ValueError("not today")

        remove = prefork.add_accept_handler(listener, accepted)
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            assert await reader.read() == b""
            writer.close()
        remove()
    assert [str(context["exception"]) for context in told] == ["not today"] * 3


async def test_a_broken_listener_is_one_event_and_no_further_attempts(world: World) -> None:
    events: list[Event] = []
    broken: list[OSError] = []
    with socket.socket() as no_listener:
        no_listener.bind(("127.0.0.1", 0))
        acceptor = Acceptor(no_listener, lambda *_: None, emit=events.append, on_broken=broken.append)
        await eventually(lambda: broken)
        await asyncio.sleep(0.02)
        acceptor.close()
        acceptor.resume()
    assert len(broken) == 1
    assert [type(event) for event in events] == [ListenerBroken]


async def test_serve_forever_raises_when_a_listener_breaks(world: World) -> None:
    async def handle(stream: prefork.Stream) -> None: ...

    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with observed_server(handle, lambda event: None) as server:
            server.add_socket(listener)
            listener.shutdown(socket.SHUT_RDWR)
            with pytest.raises(prefork.ListenerError):
                await server.serve_forever()


SERVER = """
import asyncio, json, prefork, sys
from prefork.events import log

lines = []

async def handle(stream):
    async for line in stream:
        stream.write(line)

async def main():
    async with prefork.TCPServer(handle) as server:
        server._emit = lambda event: lines.append(f"{type(event).__name__} {event}")
        server.listen(0, "127.0.0.1")
        port = server.sockets[0].getsockname()[1]
        for number in range(6):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"%d\\n" % number)
            try:
                assert await asyncio.wait_for(reader.readline(), 5) == b"%d\\n" % number
            finally:
                writer.close()
    print(json.dumps(lines))

asyncio.run(main())
"""
TRANSIENT = ["ECONNABORTED", "EPERM", "EINTR", "EAGAIN"]
#: Those that are judged like the first one.
ALIKE = ["EPROTO", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENONET", "ENOPROTOOPT", "EOPNOTSUPP"]
ALIKE += ["ETIMEDOUT"]


@pytest.mark.parametrize("error", [*TRANSIENT, *(slow(error) for error in ALIKE)])
def test_an_error_of_one_connection_is_skipped(error: str) -> None:
    """The kernel reports it instead of every third connection; every one is served all the same."""
    need("strace")
    inject = f"inject=accept4:error={error}:when=1+3"
    done = run_script(SERVER, prefix=("strace", "-qq", "-f", "-o", "/dev/null", "-e", "trace=accept4", "-e", inject))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = json.loads(done.stdout)
    assert all(line.startswith("AcceptSkipped") for line in lines)
    assert (lines == []) is (error in ("EINTR", "EAGAIN"))


def test_a_listener_that_fails_for_good_makes_the_worker_leave_instead_of_spinning() -> None:
    need("strace")
    code = """
import asyncio, prefork
async def handle(stream): ...
async def main():
    async with prefork.TCPServer(handle) as server:
        server.listen(0, "127.0.0.1")
        asyncio.get_running_loop().call_later(0.1, asyncio.ensure_future,
            asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1]))
        try:
            await server.serve_forever()
        except prefork.ListenerError as exc:
            print("left:", exc.errno)
asyncio.run(main())
"""
    inject = "inject=accept4:error=EINVAL"
    trace = ("strace", "-qq", "-f", "-e", "trace=accept4", "-e", inject)
    done = run_script(code, prefix=trace)
    assert done.stdout == "left: 22\n", done.stderr
    assert done.stderr.count("accept4(") < 10


LIMITED = """
import asyncio, json, os, prefork, resource, socket, sys, time

events = []
accepts = 0

async def handle(stream):
    async for line in stream:
        stream.write(line)

async def main():
    async with prefork.TCPServer(handle) as server:
        server._emit = events.append
        server.listen(0, "127.0.0.1", backlog=500)
        where = server.sockets[0].getsockname()
        first = socket.create_connection(where)
        first.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(first, b"early\\n")
        assert await loop.sock_recv(first, 100) == b"early\\n"
        clients = []
        for _ in range(100):
            client = socket.socket()
            client.setblocking(False)
            clients.append(client)
        # From here on the process has room for ten connections more.
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        for client in clients:
            await loop.sock_connect(client, where)
            await loop.sock_sendall(client, b"hello\\n")
        await asyncio.sleep(0.3)
        begun, busy = time.monotonic(), time.process_time()
        # Those that are there are served as if nothing were the matter.
        for _ in range(50):
            await loop.sock_sendall(first, b"still\\n")
            assert await loop.sock_recv(first, 100) == b"still\\n"
        await asyncio.sleep(1.5)
        busy = time.process_time() - busy
        wall = time.monotonic() - begun
        waiting = server.connections
        resumed = []
        for client in clients:
            begun = time.monotonic()
            assert await asyncio.wait_for(loop.sock_recv(client, 100), 5) == b"hello\\n"
            resumed.append(time.monotonic() - begun)
            client.close()
        first.close()
        print(json.dumps({
            "waiting": waiting, "busy": busy / wall, "slowest": sorted(resumed)[len(resumed) // 2],
            "paused": sum(type(e).__name__ == "AcceptPaused" for e in events),
            "others": sorted({type(e).__name__ for e in events} - {"AcceptPaused"}),
        }))

asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_without_descriptors_accepting_pauses_and_resumes_when_one_is_free(loop: str) -> None:
    """It neither spins nor floods the log, serves open connections, and accepts again as soon as one closes."""
    code = LIMITED if loop == "asyncio" else LIMITED.replace("asyncio.run(main())", "import uvloop; uvloop.run(main())")
    done = run_script(code)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["waiting"] <= 12
    assert result["others"] == []
    # Every client is served in the end; accepting went on at once when one had left, not at the next attempt.
    assert result["slowest"] < 0.2
    assert result["busy"] < 0.2
    # One shortage until no client waited any more, although a descriptor was free now and then.
    assert result["paused"] == 1


@pytest.mark.slow
async def test_a_shortage_is_one_event_however_often_accepting_is_retried(world: World) -> None:
    """A shortage is one event, however often it is looked whether it is over."""
    events: list[Event] = []

    class Short:
        """A listening socket of a process without descriptors."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.attempts = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

        def accept(self) -> Any:
            self.attempts += 1
            raise OSError(24, "Too many open files")

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        short = Short(listener)
        acceptor = Acceptor(short, lambda *_: None, emit=events.append)  # type: ignore[arg-type]  # stands in
        began = time.monotonic()
        await eventually(lambda: short.attempts >= 4)
        acceptor.close()
        assert time.monotonic() - began >= 1.0, "no attempt more than each half second"
    assert [type(event) for event in events] == [AcceptPaused]
    assert "too many open files" in str(events[0])


SERVICES = """
import asyncio

async def stream(stream):
    async for line in stream:
        stream.write(line)

class Protocol(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("service", "error", "reason"),
    [("stream", "ENOSPC", "no space left"), ("Protocol", "ENOMEM", "cannot allocate memory")],
)
def test_a_full_epoll_is_a_shortage_like_any_other(tmp_path: Path, service: str, error: str, reason: str) -> None:
    """fs.epoll.max_user_watches: the connection is closed, accepting rests, and those that are open go on."""
    need("strace")
    need_root()
    (tmp_path / "service.py").write_text(SERVICES)
    with run_server(f"service:{service}", "-w", "1", cwd=tmp_path) as server, contextlib.ExitStack() as stack:
        (worker,) = server.worker_pids()

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))

        def ask(sock: socket.socket) -> bytes:
            with contextlib.suppress(ConnectionError):
                sock.sendall(b"hello\n")
                return sock.recv(100)
            return b""

        first = connect()
        assert ask(first) == b"hello\n"
        # Every second call: with this order of calls a connection or the listener is added, and nothing is removed.
        inject = ("-e", "trace=epoll_ctl", "-e", f"inject=epoll_ctl:error={error}:when=1+2")
        strace = stack.enter_context(
            subprocess.Popen(
                ["strace", "-o", str(tmp_path / "trace"), "-p", str(worker), *inject], stderr=subprocess.PIPE
            )
        )
        stack.callback(strace.terminate)
        assert strace.stderr is not None
        assert b"attached" in strace.stderr.readline()
        clients = [connect() for _ in range(3)]
        # One for each pause of 0.5 s.
        assert [ask(client) for client in clients[:2]] == [b"", b""]
        assert ask(first) == b"hello\n"
        strace.terminate()
        strace.communicate()
        assert ask(connect()) == b"hello\n"
        assert server.worker_pids() == [worker]
        log = server.stderr()
    assert "Traceback" not in log
    assert reason in log
    lines = [line for line in log.splitlines() if "paused" in line]
    assert 1 <= len(lines) <= 3, log
