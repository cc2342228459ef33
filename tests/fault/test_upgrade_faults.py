"""An upgrade in the worst moments: either supervisor fails, and the one that is left has everything that it needs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.proc import gone, session_members
from helpers.servers import ECHO, command, echo, end, leave_descriptors, serves, serving, state, status, upgrade
from helpers.support import kill_session, need, wait_until

#: Workers of another supervisor than the one whose number is in the file `good` die soon after they have come to serve.
DOOMED = (
    """
import os, threading
if os.path.exists("good") and os.getppid() != int(open("good").read()):
    threading.Timer(0.1, os._exit, (1,)).start()
"""
    + ECHO
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(ECHO)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("spare", [0, 1, 2])
def test_failed_upgrades_leave_no_descriptor_open(folder: Path, spare: int) -> None:
    need("prlimit")
    with serving(folder, workers=1) as server:
        leave_descriptors(server.pid, spare)
        server.signal(signal.SIGUSR2)
        wait_until(lambda: "upgrade failed, this server stays: " in server.stderr())
        assert "too many open files" in server.stderr()
        assert "Traceback" not in server.stderr()
        assert serves(server)
        leave_descriptors(server.pid, 30)
        end(upgrade(folder))
        assert server.wait() == 0


@pytest.mark.slow
def test_the_predecessor_serves_again_if_its_successor_gives_up_during_the_drain(folder: Path) -> None:
    """It had taken everything over; the one before serves again, and finds its files as they were."""
    (folder / "service.py").write_text(DOOMED)
    path = folder / "socket"
    with serving(folder, "--pidfile", "pid", bind=["127.0.0.1:0", f"unix:{path}"], workers=1) as server:
        inode = path.stat().st_ino
        with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as file:
            sock.settimeout(20)
            sock.connect(str(path))
            sock.sendall(b"before\n")
            assert file.readline() == b"before\n"
            (folder / "good").write_text(str(server.pid))
            upgrade(folder)
            assert (folder / "pid").read_text() != f"{server.pid}\n"
            wait_until(lambda: "serving again in its place" in server.stderr(), 30)
            wait_until(lambda: status(folder)["pid"] == server.pid and len(server.worker_pids()) == 2)
            sock.sendall(b"after\n")
            assert file.readline() == b"after\n"
        assert path.stat().st_ino == inode
        assert echo(str(path)) == b"hello\n"
        assert (folder / "pid").read_text() == f"{server.pid}\n"
        assert server.stop() == 0
        assert {each.name for each in folder.iterdir()} <= {"service.py", "good", "__pycache__"}


def test_a_stop_does_not_shut_down_sockets_of_the_predecessor(folder: Path) -> None:
    """Its workers took that for a failure, and it listened again where nothing was to listen."""
    with serving(folder, "--drain-timeout", "20", workers=1) as server:
        with socket.create_connection(("127.0.0.1", server.port), 20) as held:
            held.sendall(b"open\n")
            assert held.recv(10) == b"open\n"
            successor = upgrade(folder)
            server.signal(signal.SIGSTOP)
            try:
                end(successor)
                # The kernel accepts for the one that has not given it up yet.
                socket.create_connection(("127.0.0.1", server.port), 20).close()
            finally:
                server.signal(signal.SIGCONT)
        assert server.wait() == 0
        assert "failed: invalid argument" not in server.stderr()
        assert "listening again" not in server.stderr()


@pytest.mark.slow
def test_a_failed_successor_removes_the_files_it_made(folder: Path) -> None:
    """New addresses and another pidfile are its own; what it was given is not."""
    config, path = folder / "prefork.toml", folder / "socket"
    config.write_text(f'bind = ["127.0.0.1:0", "unix:{path}"]\npidfile = "pid"\n')
    with serving(folder, bind=[]) as server:
        new = folder / "new"
        config.write_text(f'bind = ["127.0.0.1:0", "unix:{path}", "unix:{new}"]\npidfile = "other"\n')
        (folder / "service.py").write_text("raise OSError('broken')")
        assert "OSError: broken" in command(folder, "upgrade").stderr
        wait_until(lambda: not new.exists() and not (folder / "other").exists())
        assert (folder / "pid").read_text() == f"{server.pid}\n"
        assert echo(str(path)) == b"hello\n"
        (folder / "service.py").write_text(ECHO)
        successor = upgrade(folder)
        assert server.wait() == 0
        wait_until(lambda: not (folder / "pid").exists(), what="the pidfile that is not wanted any more goes with it")
        assert (folder / "other").read_text() == f"{successor}\n"
        assert echo(str(new)) == b"hello\n"
        end(successor)
        assert not list(folder.glob("other")) + list(folder.glob("new")) + list(folder.glob("socket"))


@pytest.mark.slow
def test_a_supervisor_that_gives_up_waits_for_its_starting_successor(folder: Path) -> None:
    """It may be the cure."""
    path = folder / "socket"
    code = "import os, time\nwhile os.path.exists('wait') and os.getppid() != int(open('old').read()):\n"
    code += "    time.sleep(0.01)\n"
    crash = "import threading\nif os.path.exists('crash') and os.getppid() == int(open('old').read()):\n"
    crash += "    threading.Timer(0.1, os._exit, (1,)).start()\n"
    (folder / "old").write_text("0")
    (folder / "service.py").write_text(code + crash + ECHO)
    with serving(folder, "--pidfile", "pid", bind=["127.0.0.1:0", f"unix:{path}"], workers=1) as server:
        (folder / "old").write_text(str(server.pid))
        (folder / "wait").touch()
        (folder / "crash").touch()
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        wait_until(lambda: "restarting in" in server.stderr(), 20)
        server.signal(signal.SIGUSR2)
        wait_until(lambda: "giving up: every worker keeps dying" in server.stderr(), 30)
        (folder / "wait").unlink()
        assert server.wait() == 0
        wait_until(lambda: serves(server))
        assert echo(str(path)) == b"hello\n"
        end(status(folder)["pid"])
        assert not path.exists()


@pytest.mark.slow
def test_an_upgrade_keeps_the_scaled_number_of_workers(folder: Path) -> None:
    with serving(folder) as server:
        assert command(folder, "scale", "4").returncode == 0
        successor = upgrade(folder)
        assert len([w for w in status(folder)["workers"] if w["state"] == "ready"]) == 4
        server.wait()
        end(successor)


@pytest.mark.slow
def test_log_files_are_reopened_after_an_upgrade(folder: Path) -> None:
    """The successor has the descriptor; by what name it is to be opened again, the one before has told."""
    log = folder / "log"
    with serving(folder, prefix=["sh", "-c", f'exec "$@" 2>>{log}', "sh"]) as server:
        wait_until(lambda: "ready" in log.read_text())
        successor = upgrade(folder)
        assert server.wait() == 0
        log.rename(folder / "log.1")
        os.kill(successor, signal.SIGUSR1)
        wait_until(log.exists)
        command(folder, "scale", "1")
        wait_until(lambda: "scaled (control socket): 1 worker" in log.read_text())
        end(successor)


def test_programs_started_before_the_successor_serves_hold_no_socket(folder: Path) -> None:
    """The successor's own code runs before `serve` does; what it starts must not keep sockets open for ever."""
    (folder / "program.py").write_text(
        "import os, subprocess, sys, prefork\n"
        "async def handle(stream): stream.write(b'hello\\n')\n"
        "code = 'import os; print(sorted(os.environ), os.listdir(\"/proc/self/fd\"))'\n"
        "with open('seen', 'w') as file:\n"
        "    subprocess.run([sys.executable, '-c', code], stdout=file, close_fds=False)\n"
        f"prefork.serve(handle, bind='127.0.0.1:0', workers=1, control={str(folder / 'control')!r})\n"
    )
    process = _start(folder, "program.py")
    try:
        wait_until(lambda: state(folder) == "serving")
        before = (folder / "seen").read_text()
        successor = upgrade(folder)
        assert (folder / "seen").read_text() == before
        assert "PREFORK_HANDOVER" not in before
        assert process.wait(20) == 0
        end(successor)
    finally:
        _kill(process)


def _start(folder: Path, program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, program],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    kill_session(process.pid)
    process.wait()


@pytest.mark.slow
def test_an_immediate_stop_ends_both_supervisors_at_once(folder: Path) -> None:
    with serving(folder, "--drain-timeout", "60", workers=1) as server, socket.socket() as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(b"before\n")
        assert sock.recv(100) == b"before\n"
        successor = upgrade(folder)
        assert command(folder, "stop", "--now").returncode == 0
        assert server.wait(10) == 0
        wait_until(lambda: gone(successor))
        wait_until(lambda: session_members(server.pid) == [])
