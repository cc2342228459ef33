"""`prefork serve` as a process tree: start, death of workers, stop, and what a worker finds itself with."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.support import need, need_root, open_files, slow, wait_until

from prefork.testing import Server, run_server

SERVICE = """
import asyncio, os, signal, time

async def handle(stream):
    async for line in stream:
        word = line.strip()
        if word == b"pid":
            stream.write(b"%d\\n" % os.getpid())
        elif word == b"exit":
            os._exit(5)
        elif word == b"sysexit":
            raise SystemExit(5)
        elif word == b"fds":
            links = sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                           if os.path.exists(f"/proc/self/fd/{fd}") or fd.isdigit() and int(fd) < 3)
            stream.write(";".join(link.split(":")[0] for link in links).encode() + b"\\n")
        else:
            stream.write(line)

async def polite(stream):
    await stream.wait_draining()
    await stream.send(b"goodbye\\n")

async def deaf(stream):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

class Service:
    async def start(self):
        print(f"started {os.getpid()}\\n", end="", flush=True)
    async def handle(self, stream):
        await handle(stream)
    async def stop(self):
        print(f"stopped {os.getpid()}\\n", end="", flush=True)

service = Service()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def ask(server: Server, word: str) -> bytes:
    with connect(server) as sock:
        sock.sendall(word.encode() + b"\n")
        return sock.makefile("rb").readline()


def test_it_says_where_it_listens_and_when_it_is_ready(folder: Path) -> None:
    path = folder / "socket"
    with run_server(
        "service:handle", "--workers", "3", bind=["127.0.0.1:0", "[::1]:0", f"unix:{path},mode=620"], cwd=folder
    ) as server:
        text = server.stderr()
        assert f"listening on 127.0.0.1:{server.port} (tcp)\n" in text
        assert f"listening on unix:{path} (unix)\n" in text
        assert "listening on [::1]:" in text
        assert "ready: 3 workers\n" in text
        assert len(server.worker_pids()) == 3
        assert path.stat().st_mode & 0o777 == 0o620
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"over unix\n")
            assert sock.makefile("rb").readline() == b"over unix\n"
        assert server.stop() == 0
        assert not path.exists()
        assert not server.stderr().count("Traceback")


def test_all_workers_serve(folder: Path) -> None:
    with run_server("service:handle", "-w", "3", cwd=folder) as server:
        seen: set[bytes] = set()

        def all_seen() -> bool:
            seen.update(ask(server, "pid") for _ in range(20))
            return len(seen) == 3

        wait_until(all_seen, what="answers from three workers")
        assert {int(pid) for pid in seen} == set(server.worker_pids())


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_worker_that_dies_is_replaced_and_costs_its_own_connections_alone(folder: Path, how: str) -> None:
    with run_server("service:handle", "-w", "2", cwd=folder) as server:
        connections = [connect(server) for _ in range(40)]
        owners: dict[socket.socket, int] = {}
        for sock in connections:
            sock.sendall(b"pid\n")
            owners[sock] = int(sock.makefile("rb").readline())
        victim = owners[connections[0]]
        if how == "kill":
            os.kill(victim, signal.SIGKILL)
        else:
            connections[0].sendall(b"exit\n")
        wait_until(lambda: victim not in server.worker_pids() and len(server.worker_pids()) == 2, what="a replacement")
        for sock, owner in owners.items():
            try:
                sock.sendall(b"still there?\n")
                answer = sock.makefile("rb").readline()
            except OSError:
                answer = b""
            assert answer == (b"" if owner == victim else b"still there?\n")
            sock.close()
        cause = "signal 9 (SIGKILL)" if how == "kill" else "exit status 5"
        assert f"(pid {victim}) died: {cause}, restarting" in server.stderr()
        assert server.stop() == 0


def test_connections_in_the_queue_survive_the_death_of_every_worker(folder: Path) -> None:
    """All workers are stopped in their tracks, connections queue up, and the workers are killed."""
    with run_server("service:handle", "-w", "2", cwd=folder) as server:
        for _ in range(3):
            workers = server.worker_pids()
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
            queued = [connect(server) for _ in range(150)]
            for i, sock in enumerate(queued):
                sock.sendall(b"%d\n" % i)
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            for i, sock in enumerate(queued):
                assert sock.makefile("rb").readline() == b"%d\n" % i
                sock.close()


def test_a_handler_that_exits_does_not_take_its_worker_along(folder: Path) -> None:
    with run_server("service:handle", "-w", "1", cwd=folder) as server:
        before = server.worker_pids()
        for _ in range(20):
            assert ask(server, "sysexit") == b""
        assert server.worker_pids() == before
        assert ask(server, "fine") == b"fine\n"
        wait_until(lambda: "handler failed for 127.0.0.1:" in server.stderr())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_drains(folder: Path, number: int) -> None:
    with run_server("service:polite", "-w", "2", cwd=folder) as server:
        clients = [connect(server) for _ in range(10)]
        wait_until(lambda: _established(server.port) >= 10)
        time.sleep(0.1)
        server.signal(number)
        for sock in clients:
            assert sock.makefile("rb").read() == b"goodbye\n"
            sock.close()
        assert server.wait() == 0


def _established(port: int) -> int:
    """Connections to `port` that this machine has, in /proc/net/tcp."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "01" for row in rows)


def test_connections_that_do_not_end_are_aborted_at_the_drain_timeout(folder: Path) -> None:
    with run_server("service:deaf", "-w", "1", "--drain-timeout", "0.3", cwd=folder) as server:
        clients = [connect(server) for _ in range(5)]
        wait_until(lambda: _established(server.port) >= 5)
        time.sleep(0.1)
        assert server.stop() == 0
        assert "5 connections aborted at the drain timeout" in server.stderr()
        assert "5 tasks ignore their cancellation" in server.stderr()
        assert "killed" not in server.stderr()
        for sock in clients:
            sock.close()


def test_a_second_signal_stops_at_once(folder: Path) -> None:
    with run_server("service:deaf", "-w", "2", cwd=folder) as server, connect(server):
        wait_until(lambda: _established(server.port) >= 1)
        server.signal(signal.SIGTERM)
        wait_until(lambda: "stopping (SIGTERM)" in server.stderr())
        assert server.stop(signal.SIGTERM) == 0
        assert "stopping at once" in server.stderr()


def test_quit_stops_at_once(folder: Path) -> None:
    with run_server("service:deaf", "-w", "2", cwd=folder) as server, connect(server):
        assert server.stop(signal.SIGQUIT) == 0


def test_a_lifespan_object_is_started_and_stopped_in_each_worker(folder: Path) -> None:
    out = folder / "out"
    code = f"exec {sys.executable} -m prefork serve service:service -w 2 --bind 127.0.0.1:0 > {out}"
    with subprocess.Popen(["sh", "-c", code], cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "ready:" in line:
                break
        process.terminate()
        assert process.wait(20) == 0
    words = [line.split() for line in out.read_text().splitlines()]
    assert sorted(word for word, _ in words) == ["started", "started", "stopped", "stopped"]
    assert len({pid for _, pid in words}) == 2


def test_what_a_worker_holds(folder: Path) -> None:
    """The same descriptors in each: no sibling's pipe or pidfd, nothing of the supervisor's own."""
    with run_server("service:handle", "-w", "3", cwd=folder) as server:
        seen: dict[int, bytes] = {}

        def all_seen() -> bool:
            with connect(server) as sock:
                file = sock.makefile("rb")
                sock.sendall(b"pid\nfds\n")
                pid = int(file.readline())
                seen[pid] = file.readline()
            return len(seen) == 3

        wait_until(all_seen, what="three workers")

        def all_the_same() -> bool:
            # A connection that was closed a moment ago may still be there in one of them.
            return all_seen() and len(set(seen.values())) == 1

        wait_until(all_the_same, what=f"the same descriptors in all: {seen}")
        held = next(iter(seen.values())).decode().strip().split(";")
        assert sum(kind == "pipe" for kind in held) <= 2, "the status pipe and the lifeline"
        assert "anon_inode" not in {kind for kind in held if "pidfd" in kind}
        for pid in server.worker_pids():
            status = Path(f"/proc/{pid}/status").read_text()
            fields = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
            assert int(fields["SigBlk"], 16) == 0
            ignored, caught = (
                {n for n in range(1, 65) if int(fields[which], 16) & (1 << n - 1)} for which in ("SigIgn", "SigCgt")
            )
            # As in every Python program: a program that the service starts shall have no other signals than from there.
            assert not ignored & {signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD}, ignored
            # SIGUSR1 has log files opened again, SIGUSR2 the stacks of all threads told; the last two mean nothing.
            heeded = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP}
            assert caught == heeded, caught


def test_the_supervisor_has_no_loop_and_no_threads(folder: Path) -> None:
    with run_server("service:handle", "-w", "2", cwd=folder) as server:
        assert len(os.listdir(f"/proc/{server.pid}/task")) == 1
        held = open_files(server.pid).values()
        assert "anon_inode:[eventpoll]" not in held


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, *map(slow, (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN))]
)
@pytest.mark.parametrize("moment", ["pid", "socket", "control"])
def test_a_signal_while_it_starts(folder: Path, number: int, moment: str) -> None:
    """It ends it, and leaves nothing behind; or it means nothing yet."""
    options = ["--pidfile", "pid", "--control", "control"]
    with run_server(
        "service:handle", *options, "-w", "1", cwd=folder, bind=["unix:socket"], wait_ready=False
    ) as server:
        wait_until((folder / moment).exists)
        server.signal(number)
        if number != signal.SIGTERM:
            wait_until(lambda: "ready: " in server.stderr())
            server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in server.stderr()
    assert {each.name for each in folder.iterdir()} <= {"service.py", "__pycache__"}


def test_the_current_folder_is_gone(folder: Path) -> None:
    place = folder / "place"
    place.mkdir()
    (place / "service.py").write_text("")
    prefix = ["sh", "-c", 'rm -r ../place; exec "$@"', "sh"]
    with run_server("service:handle", "-w", "1", cwd=place, prefix=prefix, wait_ready=False) as server:
        assert server.wait() == 3
        assert "service service:handle: the current directory is gone" in server.stderr()
        assert "Traceback" not in server.stderr()


def test_an_address_in_use_is_one_line_and_no_fork(folder: Path) -> None:
    need("strace")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        trace = folder / "trace"
        done = subprocess.run(
            ["strace", "-qq", "-f", "-e", "trace=clone,clone3,fork,vfork", "-o", str(trace)]
            + [sys.executable, "-m", "prefork", "serve", "service:handle", "--bind", f"127.0.0.1:{port}"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert f"bind 127.0.0.1:{port}: address already in use" in line
    assert not trace.read_text().count("clone")


def test_of_several_addresses_all_are_bound_or_none(folder: Path) -> None:
    path = folder / "socket"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = ["--bind", f"unix:{path}", "--bind", f"127.0.0.1:{taken.getsockname()[1]}"]
        done = subprocess.run(
            [sys.executable, "-m", "prefork", "serve", "service:handle", *options],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert done.returncode == 4
    assert not path.exists()


def test_from_python_with_a_function(folder: Path) -> None:
    script = folder / "program.py"
    script.write_text(
        "import prefork, service, sys\n"
        "prefork.serve(service.handle, bind=['127.0.0.1:0'], workers=2, ready_fd=int(sys.argv[1]))\n"
    )
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, str(script), str(writer)], cwd=folder, stderr=subprocess.PIPE, pass_fds=(writer,), text=True
    ) as process:
        os.close(writer)
        try:
            assert os.read(reader, 100) == b"READY\n"
            assert process.stderr is not None
            line = process.stderr.readline()
            port = int(line.split("127.0.0.1:")[1].split()[0])
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                sock.sendall(b"hello\n")
                assert sock.makefile("rb").readline() == b"hello\n"
            process.terminate()
            assert process.wait(20) == 0
        finally:
            os.close(reader)
            process.kill()


def test_no_room_for_a_process_is_survived(folder: Path) -> None:
    need("strace")
    need_root()
    with run_server("service:handle", "-w", "2", cwd=folder) as server:
        tracer = subprocess.Popen(
            ["strace", "-qq", "-p", str(server.pid), "-o", "/dev/null", "-e", "trace=clone,clone3,fork,vfork"]
            + ["-e", "inject=clone,clone3,fork,vfork:error=EAGAIN"],
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: "TracerPid:\t0" not in Path(f"/proc/{server.pid}/status").read_text())
            victim = server.worker_pids()[0]
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: "cannot fork worker" in server.stderr())
            for _ in range(20):
                assert ask(server, "served meanwhile") == b"served meanwhile\n"
            assert server.stderr().count("cannot fork worker") == 1
        finally:
            tracer.terminate()
            tracer.wait()
        wait_until(lambda: len(server.worker_pids()) == 2, what="the replacement")
        assert server.stop() == 0
