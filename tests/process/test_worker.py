"""One worker: the descriptors that it has, and that it ends in time whatever the service has left running."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from pathlib import Path

import pytest
from helpers.proc import cpu_share
from helpers.support import run_script, traced, wait_until

from prefork.core.time_limits import worker_exit_timeout
from prefork.parent.workers import MIN_INBOXES
from prefork.testing import Server, run_server

SERVICE = """
import asyncio, fcntl, os, threading, time

async def handle(stream):
    async for line in stream:
        if line == b"hang up\\n":
            for fd in map(int, os.listdir("/proc/self/fd")):
                if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}"):
                    kind, flags = os.readlink(f"/proc/self/fd/{fd}"), fcntl.fcntl(fd, fcntl.F_GETFL)
                    if kind.startswith("pipe:") and flags & os.O_ACCMODE == os.O_WRONLY:
                        os.close(fd)
        stream.write(line)

class Service:
    async def start(self): ...
    async def handle(self, stream): ...
    async def stop(self): ...

class Thread(Service):
    async def start(self):
        threading.Thread(target=time.sleep, args=(3600,)).start()

class Executor(Service):
    async def start(self):
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)

class StubbornTask(Service):
    async def start(self):
        self.task = asyncio.create_task(self.stay())
    async def stay(self):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

class StubbornStop(StubbornTask):
    async def start(self): ...
    async def stop(self):
        await self.stay()

class StubbornGenerator(Service):
    async def start(self):
        self.generator = self.numbers()
        await anext(self.generator)
    async def numbers(self):
        try:
            yield 1
        finally:
            await asyncio.sleep(3600)

class BlockingStop(Service):
    async def stop(self):
        time.sleep(3600)

class BrokenStop(Service):
    async def stop(self):
        raise RuntimeError("the pool is closed already")

class Callback(Service):
    async def start(self):
        asyncio.get_running_loop().call_later(0.1, self.leave)
    def leave(self):
        if not os.path.exists("left"):
            open("left", "w").close()
            raise SystemExit(6)

thread, executor, task, stop = Thread(), Executor(), StubbornTask(), StubbornStop()
generator, blocking, broken, callback = StubbornGenerator(), BlockingStop(), BrokenStop(), Callback()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(SERVICE)
    return tmp_path


def held(pid: int) -> dict[int, tuple[str, bool]]:
    """Return the descriptors of a process from 3 up: what each is, and whether it can be written to."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if int(entry.name) > 2:
            try:
                found[int(entry.name)] = (os.readlink(entry), bool(entry.lstat().st_mode & stat.S_IWUSR))
            except FileNotFoundError:
                continue
    return found


def things(pid: int, kind: str) -> set[tuple[str, bool]]:
    return {thing for thing in held(pid).values() if thing[0].startswith(kind)}


def test_a_worker_holds_only_its_own_and_the_shared_descriptors(folder: Path) -> None:
    """With a copy of a sibling's pipe in another worker, its end of file would never come. Three workers, of which one
    was forked later."""
    bind = ["127.0.0.1:0", f"unix:{folder / 'socket'}"]
    with run_server("app:handle", "-w", "3", bind=bind, cwd=folder) as server:
        # Both ends of each, in every worker.
        inboxes = 2 * MIN_INBOXES
        victim = server.worker_pids()[1]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(server.worker_pids()) == 3 and victim not in server.worker_pids())
        # Its own socket pair is the last thing that a loop makes; before it has a loop a worker is not yet itself.
        wait_until(
            lambda: all(
                things(pid, "anon_inode:[eventpoll]") and len(things(pid, "socket:")) == 7 + inboxes
                for pid in server.worker_pids()
            )
        )
        # It lets go of the end that the replacement writes to: those of the lifeline and of its own signals stay.
        wait_until(lambda: sum(writable for _, writable in things(server.pid, "pipe:")) == 2)
        supervisor = held(server.pid)
        log = os.stat(server._log.name).st_ino
        sockets = {pid: {name for name, _ in things(pid, "socket:")} for pid in server.worker_pids()}
        listeners = set.intersection(*sockets.values())
        assert len(listeners) == 2 + inboxes
        # The supervisor, and no worker, has the other ends of the tether, the channel and the console of each worker.
        ends = {name for name, _ in supervisor.values() if name.startswith("socket:")} - listeners
        assert len(ends) == 9
        pipes = {pid: things(pid, "pipe:") for pid in server.worker_pids()}
        common = set.intersection(*pipes.values())
        # The parent-death pipe: every worker reads, only the supervisor writes.
        assert [writable for _, writable in common] == [False]
        (lifeline, _) = next(iter(common))
        assert (lifeline, True) in supervisor.values()
        for pid, mine in pipes.items():
            # The status pipe: only this worker writes, only the supervisor reads.
            ((status, writable),) = mine - common
            assert writable
            assert [name for name, _ in supervisor.values()].count(status) == 1
            assert (status, False) in supervisor.values()
            assert not any(name == status for other in pipes if other != pid for name, _ in pipes[other])
        for pid in server.worker_pids():
            # The pair by which a loop wakes itself, and its ends of the tether, of the channel and of its console.
            own = sockets[pid] - listeners
            assert len(own) == 5
            assert not own & ends
            assert not any(own & other for sibling, other in sockets.items() if sibling != pid)
            # Those of its loop and its poller, one timer, and one for the supervisor's death.
            allowed = {f"anon_inode:[{kind}]" for kind in ("eventpoll", "timerfd", "pidfd")}
            assert {name for name, _ in things(pid, "anon_inode:")} <= allowed
            rest = {
                name
                for name, _ in held(pid).values()
                if not name.startswith(("pipe:", "socket:", "anon_inode:")) and Path(name).stat().st_ino != log
            }
            assert not rest
        assert server.stop() == 0


def test_process_titles_name_supervisor_and_workers(folder: Path) -> None:
    with run_server("app:handle", "-w", "2", cwd=folder) as server:

        def title(pid: int) -> str:
            return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode()

        assert title(server.pid).startswith("prefork: supervisor")
        assert {title(pid) for pid in server.worker_pids()} == {"prefork: worker 0", "prefork: worker 1"}


def test_a_closed_status_pipe_does_not_make_the_supervisor_spin(folder: Path) -> None:
    with run_server("app:handle", "-w", "1", cwd=folder) as server:
        (worker,) = server.worker_pids()
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(b"hang up\n")
            assert sock.recv(100) == b"hang up\n"
        assert not [name for name, writable in things(worker, "pipe:") if writable]
        assert cpu_share(server.pid) < 0.3, "it spins"
        assert server.worker_pids() == [worker]
        assert server.stop() == 0


def connections_refused(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=10).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", ["thread", "executor", "task", "stop", "generator", "broken"])
def test_a_stop_ends_whatever_the_service_left_running(folder: Path, name: str) -> None:
    options = ("-w", "2", "--drain-timeout", "1", "--stop-timeout", "0.5")
    with run_server(f"app:{name}", *options, cwd=folder) as server:
        assert server.stop() == 0
        said = server.stderr()
        assert "Traceback" not in said or name == "broken"
        assert "killed" not in said, "they ended by themselves"
        if name == "stop":
            assert "stop() failed: TimeoutError: it did not return within 0.5 s (--stop-timeout)" in said
        if name == "broken":
            assert said.count("stop() failed: RuntimeError: the pool is closed already") == 2
        if name == "task":
            assert said.count("1 task ignored cancellation and was abandoned: StubbornTask.stay") == 2


@pytest.mark.slow
def test_a_worker_with_a_broken_listener_ends_even_if_the_service_blocks(folder: Path) -> None:
    """Its listener broke, and no stop request bounds its end: SIGALRM does."""
    with run_server("app:blocking", "-w", "1", cwd=folder) as server:
        (victim,) = server.worker_pids()
        with traced(victim, "-e", "inject=accept4:error=EINVAL"):
            assert not connections_refused(server)
            wait_until(lambda: "signal 14 (SIGALRM), restarting" in server.stderr(), 20, "the end")
        wait_until(lambda: server.worker_pids() not in ([], [victim]))


def test_a_service_that_exits_outside_of_a_handler_ends_only_its_worker(folder: Path) -> None:
    with run_server("app:callback", "-w", "2", cwd=folder) as server:
        wait_until(lambda: "died: exit status 6, restarting" in server.stderr())
        wait_until(lambda: len(server.worker_pids()) == 2)
        assert "Traceback" not in server.stderr()
        assert server.stop() == 0


def test_serve_never_returns_in_a_worker(folder: Path) -> None:
    """A process that gets past `serve` prints it."""
    result = run_script(
        """
import os, sys, prefork
sys.path.insert(0, os.getcwd())
import app
reader, writer = os.pipe()
if os.fork() == 0:
    os.read(reader, 10)
    os.kill(os.getppid(), 15)
    os._exit(0)
try:
    prefork.serve(app.handle, bind="127.0.0.1:0", workers=2, ready_fd=writer)
except BaseException as exc:
    print("came back", type(exc).__name__, exc)
""",
        cwd=folder,
    )
    assert result.stdout == "came back SystemExit 0\n", result


@pytest.mark.slow
def test_a_worker_whose_exit_handlers_hang_ends_itself_before_it_is_killed(tmp_path: Path) -> None:
    """Its time to exit starts once, with the end of the drain, and not again after `stop()`."""
    (tmp_path / "service.py").write_text(
        "import asyncio, atexit, time\n"
        "class Service:\n"
        "    async def start(self):\n"
        "        atexit.register(time.sleep, 60)\n"
        "    async def handle(self, stream):\n"
        "        pass\n"
        "    async def stop(self):\n"
        "        await asyncio.sleep(2.8)\n"
        "service = Service()\n"
    )
    options = ("-w", "1", "--drain-timeout", "1", "--stop-timeout", "3")
    with run_server("service:service", *options, cwd=tmp_path) as server:
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < worker_exit_timeout(3) + 1.5
        assert "still there after the drain timeout" not in server.stderr()
