"""Processes that workers have started, and the sockets that these hold, are gone when they should be."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.proc import gone
from helpers.servers import command, ready, serving, upgrade
from helpers.support import run_script, wait_until

from prefork.testing import Server, run_server

#: Ways to start a process from a handler. Each answers with its pid, and the number of listening sockets that it has.
SERVICE = """
import multiprocessing, os, signal, socket, subprocess, sys, time

PROGRAM = '''
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
time.sleep(60)
'''

def sleep():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)

def held():
    found = 0
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                found += sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            continue
    return found

def fork(run=sleep):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, b"%d" % held())
        run()
        os._exit(0)
    return pid, int(os.read(reader, 10))

def start(how):
    if how == "fork":
        return fork()
    if how == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=sleep, daemon=False)
        process.start()
        return process.pid, 0
    if how == "subprocess":
        return subprocess.Popen([sys.executable, "-c", PROGRAM]).pid, 0
    if how == "session":
        return subprocess.Popen([sys.executable, "-c", PROGRAM], start_new_session=True).pid, 0
    if how == "daemon":
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.setsid()
            pid = os.fork()
            if pid == 0:
                os.write(writer, b"%d" % os.getpid())
                sleep()
            os._exit(0)
        os.wait()
        return int(os.read(reader, 10)), 0

async def handle(stream):
    async for line in stream:
        word = line.decode().strip()
        if word == "block":
            time.sleep(60)
        elif word == "pass":
            # Pass a listening socket to a program that does not know of it.
            fds = [fd for fd in map(int, os.listdir("/proc/self/fd")) if listens(fd)]
            pid = subprocess.Popen([sys.executable, "-c", PROGRAM], pass_fds=fds, start_new_session=True).pid
            stream.write(b"%d %d %d\\n" % (os.getpid(), pid, len(fds)))
        elif word:
            stream.write(b"%d %d %d\\n" % (os.getpid(), *start(word)))

def listens(fd):
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False
"""
IN_GROUP = ["fork", "multiprocessing", "subprocess"]
ESCAPED = ["session", "daemon"]
#: Those that are seldom different from the first one.
IN_GROUP_SLOWLY = ["fork", *(pytest.param(each, marks=pytest.mark.slow) for each in IN_GROUP[1:])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def start(server: Server, how: str) -> tuple[int, int, int]:
    """Have a worker start a process; return both pids, and the number of listening sockets that the process has."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(how.encode() + b"\n")
        worker, pid, held = map(int, sock.makefile().readline().split())
    return worker, pid, held


def refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
            sock.listen()
        except OSError:
            return False
    return True


# --- a stop -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [*IN_GROUP_SLOWLY, *ESCAPED])
def test_after_a_stop_no_process_and_no_socket_is_left(folder: Path, how: str) -> None:
    with run_server("service:handle", "-w", "2", cwd=folder, bind=["127.0.0.1:0", f"unix:{folder}/s"]) as server:
        port = server.port
        _, pid, held = start(server, how)
        assert held == 0
        assert not gone(pid)
        assert server.stop() == 0
        assert gone(pid)
        assert free(port)
        assert not (folder / "s").exists()


def test_a_listener_that_another_process_holds_refuses_after_a_stop(folder: Path) -> None:
    """The service has passed the socket to a program that may outlive the server."""
    with run_server("service:handle", "-w", "2", "--leave-daemons", cwd=folder) as server:
        port = server.port
        _, pid, held = start(server, "pass")
        try:
            assert held
            assert server.stop() == 0
            assert not gone(pid)
            assert refused(port)
            assert free(port)
        finally:
            os.kill(pid, signal.SIGKILL)


def test_a_socket_that_was_passed_on_is_not_shut_down(folder: Path) -> None:
    code = """
import os, socket, sys
from prefork.testing import run_server
with socket.create_server(("127.0.0.1", 0)) as listener:
    os.set_inheritable(listener.fileno(), True)
    prefix = ("sh", "-c", f'exec "$@" 9<&{listener.fileno()}', "sh")
    os.dup2(listener.fileno(), 9, inheritable=True)
    import subprocess
    real = subprocess.Popen
    def passing(*arguments, pass_fds=(), **options):
        return real(*arguments, pass_fds=(*pass_fds, 9), **options)
    subprocess.Popen = passing
    with run_server("service:handle", "-w", "2", bind=["fd:9"]) as server:
        assert server.stop() == 0
    with socket.create_connection(listener.getsockname(), 5) as client:
        listener.accept()[0].close()
        print("still listens")
"""
    done = run_script(code, cwd=folder)
    assert done.stdout == "still listens\n", done.stderr


@pytest.mark.slow
def test_an_upgrade_shuts_nothing_down(folder: Path) -> None:
    with serving(folder, workers=1) as server:
        _, escaped, _ = start(server, "session")
        successor = upgrade(folder)
        assert server.wait() == 0
        wait_until(lambda: gone(escaped), what="what the workers of the old one had started")
        assert len(start(server, "fork")) == 3
        assert command(folder, "stop").returncode == 0
        wait_until(lambda: gone(successor), 20)


# --- a death ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", IN_GROUP_SLOWLY)
def test_what_a_worker_has_started_dies_with_it(folder: Path, how: str) -> None:
    with serving(folder) as server:
        worker, pid, _ = start(server, how)
        other, sibling, _ = start(server, how)
        while other == worker:
            other, sibling, _ = start(server, how)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: gone(pid))
        assert not gone(sibling)
        wait_until(lambda: len(ready(folder)) == 2)


def test_nothing_is_left_of_a_worker_that_does_not_boot(folder: Path) -> None:
    """It is killed at its boot timeout, with everything that it has started by then."""
    (folder / "service.py").write_text(
        "import os, subprocess, sys, time\\n".replace("\\n", "\n")
        + "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        + "open('child', 'w').write(str(child.pid))\ntime.sleep(60)\n"
    )
    with serving(folder, "--boot-timeout", "0.7", workers=1, wait_ready=False) as server:
        assert server.wait() == 3
        assert gone(int((folder / "child").read_text()))


def hang(server: Server, folder: Path) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(b"block\n")
        wait_until(lambda: "hangs: " in server.stderr())


def reload(server: Server, folder: Path) -> None:
    assert command(folder, "reload").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("end", [hang, reload])
def test_nothing_is_left_of_a_worker_that_is_replaced(folder: Path, end: Callable[[Server, Path], None]) -> None:
    with serving(folder, "--hang-timeout", "0.5", workers=1) as server:
        _, pid, _ = start(server, "subprocess")
        end(server, folder)
        wait_until(lambda: gone(pid))


@pytest.mark.parametrize("how", ESCAPED)
@pytest.mark.slow
def test_a_process_that_left_the_workers_group_outlives_the_worker(folder: Path, how: str) -> None:
    with serving(folder, workers=1) as server:
        worker, pid, _ = start(server, how)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: [each["pid"] != worker for each in ready(folder)] == [True])
        assert not gone(pid)
        # The supervisor has adopted it and reaps it, so that no zombie stays.
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}").exists())
        assert server.stop() == 0


@pytest.mark.parametrize("how", ESCAPED)
def test_leave_daemons_keeps_daemons_of_workers(folder: Path, how: str) -> None:
    with serving(folder, "--leave-daemons", workers=1) as server:
        _, pid, _ = start(server, how)
        assert server.stop() == 0
        assert not gone(pid)
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("how", IN_GROUP_SLOWLY)
def test_a_supervisor_that_is_killed_leaves_nothing_of_a_workers_group(folder: Path, how: str) -> None:
    with serving(folder) as server:
        worker, pid, _ = start(server, how)
        port = server.port
        server.signal(signal.SIGKILL)
        wait_until(lambda: gone(worker) and gone(pid))
        wait_until(lambda: free(port))
