"""`prefork serve` as a process tree: start, death of workers, stop, and what a worker finds itself with."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.proc import open_files
from helpers.support import need, slow, traced, wait_until

from prefork.system.worker_signals import SERVICE_SIGNALS
from prefork.testing import Server, run_server

SERVICE = """
import os

async def handle(stream):
    async for line in stream:
        word = line.strip()
        if word == b"pid":
            stream.write(b"%d\\n" % os.getpid())
        elif word == b"exit":
            os._exit(5)
        elif word == b"sysexit":
            raise SystemExit(5)
        else:
            stream.write(line)

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


def test_the_log_says_where_it_listens_and_when_it_is_ready(folder: Path) -> None:
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


def test_every_worker_serves(folder: Path) -> None:
    with run_server("service:handle", "-w", "3", cwd=folder) as server:
        seen: set[bytes] = set()

        def all_seen() -> bool:
            seen.update(ask(server, "pid") for _ in range(20))
            return len(seen) == 3

        wait_until(all_seen, what="answers from three workers")
        assert {int(pid) for pid in seen} == set(server.worker_pids())


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_worker_that_dies_is_replaced_and_ends_only_its_own_connections(folder: Path, how: str) -> None:
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
        assert re.search(
            rf"\(pid {victim}\) died: {re.escape(cause)}, \d+ connections with it, restarting", server.stderr()
        )
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
        # Not with the next event: there is none.
        wait_until(lambda: "19 more of HandlerFailed (SystemExit) were not logged" in server.stderr())


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


def test_a_worker_blocks_no_signal_and_catches_only_what_it_answers(folder: Path) -> None:
    with run_server("service:handle", "-w", "3", cwd=folder) as server:
        for pid in server.worker_pids():
            status = Path(f"/proc/{pid}/status").read_text()
            fields = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
            assert int(fields["SigBlk"], 16) == 0
            ignored, caught = (
                {n for n in range(1, 65) if int(fields[which], 16) & (1 << n - 1)} for which in ("SigIgn", "SigCgt")
            )
            # As in every Python program, because a program that the service starts inherits what is ignored.
            assert not ignored & {signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD}, ignored
            # SIGUSR1 reopens log files, SIGUSR2 logs the stacks of all threads; the last two do nothing.
            expected = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP}
            assert caught == expected | {SERVICE_SIGNALS.drain}


def test_the_supervisor_has_no_loop_and_no_threads(folder: Path) -> None:
    with run_server("service:handle", "-w", "2", cwd=folder) as server:
        assert len(os.listdir(f"/proc/{server.pid}/task")) == 1
        held = open_files(server.pid).values()
        assert "anon_inode:[eventpoll]" not in held


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, *map(slow, (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN))]
)
@pytest.mark.parametrize("moment", ["pid", "socket", "control"])
def test_a_signal_during_the_start_ends_the_server_or_is_ignored(folder: Path, number: int, moment: str) -> None:
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


def test_a_current_directory_that_is_gone_is_one_line(folder: Path) -> None:
    place = folder / "place"
    place.mkdir()
    (place / "service.py").write_text("")
    prefix = ["sh", "-c", 'rm -r ../place; exec "$@"', "sh"]
    with run_server("service:handle", "-w", "1", cwd=place, prefix=prefix, wait_ready=False) as server:
        assert server.wait() == 3
        assert "service service:handle: the current directory is gone" in server.stderr()
        assert "Traceback" not in server.stderr()


def test_an_address_in_use_is_one_line_and_forks_nothing(folder: Path) -> None:
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


def test_serve_runs_a_function_from_python(folder: Path) -> None:
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


def test_a_failed_fork_is_survived_and_tried_again(folder: Path) -> None:
    calls = "clone,clone3,fork,vfork"
    with run_server("service:handle", "-w", "2", cwd=folder) as server:
        with traced(server.pid, "-e", f"trace={calls}", "-e", f"inject={calls}:error=EAGAIN"):
            victim = server.worker_pids()[0]
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: "cannot fork worker" in server.stderr())
            for _ in range(20):
                assert ask(server, "served meanwhile") == b"served meanwhile\n"
            assert server.stderr().count("cannot fork worker") == 1
        wait_until(lambda: len(server.worker_pids()) == 2, what="the replacement")
        assert server.stop() == 0
