"""An upgrade: the installed program takes over, or everything stays as it was. Nothing is lost either way."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.proc import gone, session_members
from helpers.servers import command, end, serving, status, upgrade
from helpers.support import need, rounds, slow, wait_until

from prefork.testing import Server, run_server

SERVICE = """
import os, time

VERSION = "one"

async def handle(stream):
    async for line in stream:
        stream.write(f"{VERSION} {os.getpid()} {os.getppid()} {line.decode()}".encode())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    install(tmp_path, "one")
    return tmp_path


def install(folder: Path, version: str, more: str = "") -> None:
    (folder / "service.py").write_text(SERVICE.replace('"one"', f'"{version}"') + more)


def ask(server: Server, family: int = socket.AF_INET, where: Any = None) -> list[str]:
    with socket.socket(family) as sock:
        sock.settimeout(10)
        sock.connect(where or ("127.0.0.1", server.port))
        sock.sendall(b"hello\n")
        return sock.makefile("rb").readline().decode().split()


@pytest.mark.slow
def test_an_upgrade_runs_the_installed_program(folder: Path) -> None:
    path = folder / "socket"
    with serving(folder, "--pidfile", "pid", bind=["127.0.0.1:0", f"unix:{path}"]) as server:
        inode = path.stat().st_ino
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, sock.makefile("rb") as file:
            sock.sendall(b"before\n")
            _, worker, supervisor, _ = file.readline().decode().split()
            assert int(supervisor) == server.pid
            install(folder, "two")
            successor = upgrade(folder)
            assert successor != server.pid
            for where, family in ((None, socket.AF_INET), (str(path), socket.AF_UNIX)):
                assert ask(server, family, where)[:1] == ["two"]
            # What is open stays with its worker until it ends.
            sock.sendall(b"after\n")
            assert file.readline().decode().split() == ["one", worker, supervisor, "after"]
            told = status(folder)
            assert (told["pid"], told["predecessor"]) == (successor, server.pid)
            assert (folder / "pid").read_text() == f"{successor}\n"
        assert server.wait() == 0
        wait_until(lambda: status(folder)["predecessor"] is None)
        assert path.stat().st_ino == inode
        assert int(ask(server)[2]) == successor
        install(folder, "three")
        third = upgrade(folder)
        assert ask(server)[0] == "three"
        wait_until(lambda: gone(successor))
        end(third)
        assert not path.exists()
        assert not (folder / "pid").exists()
        assert not (folder / "control").exists()
        assert session_members(server.pid) == []


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("raise RuntimeError('no database')", "RuntimeError: no database"),
        pytest.param("import os; os._exit(9)", "exit status 9", marks=pytest.mark.slow),
        ("import os; os.kill(os.getppid(), 9)", "signal 9 (SIGKILL)"),
    ],
)
def test_a_failed_upgrade_changes_nothing(folder: Path, broken: str, reason: str) -> None:
    path = folder / "socket"
    with serving(folder, "--pidfile", "pid", bind=["127.0.0.1:0", f"unix:{path}"]) as server:
        workers = set(server.worker_pids())
        inode = path.stat().st_ino
        install(folder, "two", broken)
        done = command(folder, "upgrade")
        assert done.returncode == 3
        (line,) = done.stderr.splitlines()
        assert "upgrade failed, this server stays" in line
        assert reason in line
        # A worker of the successor that was killed ends a moment later, as a child of this supervisor.
        wait_until(lambda: set(server.worker_pids()) == workers)
        assert ask(server)[0] == "one"
        assert path.stat().st_ino == inode
        assert (folder / "pid").read_text() == f"{server.pid}\n"
        assert status(folder)["pid"] == server.pid
        install(folder, "three")
        assert ask(server)[0] == "one"
        end(upgrade(folder))
        assert server.wait() == 0


def test_a_successor_that_hangs_is_killed(folder: Path) -> None:
    with serving(folder, "--boot-timeout", "0.5") as server:
        install(folder, "two", "time.sleep(60)")
        done = command(folder, "upgrade")
        assert done.returncode == 3
        assert "not ready after 0.5 s (--boot-timeout)" in done.stderr
        assert ask(server)[0] == "one"
        assert server.stop() == 0


@pytest.mark.slow
def test_an_upgrade_with_wrong_settings_changes_nothing(folder: Path) -> None:
    (folder / "prefork.toml").write_text("workers = 2\n")
    with serving(folder) as server:
        (folder / "prefork.toml").write_text("backlog = 'many'\n")
        done = command(folder, "upgrade")
        assert done.returncode == 3
        assert "--backlog many: must be a whole number (in prefork.toml)" in done.stderr
        assert ask(server)[0] == "one"
        assert server.stop() == 0


def test_new_settings_hold_after_an_upgrade(folder: Path) -> None:
    path = folder / "socket"
    config = folder / "prefork.toml"
    config.write_text(f'bind = ["127.0.0.1:0", "unix:{path}"]\nworkers = 1\ncontrol = "{folder / "control"}"\n')
    with run_server(
        "service:handle", "--config", str(config), "--control", str(folder / "control"), cwd=folder, bind=[]
    ) as server:
        assert path.exists()
        config.write_text('bind = ["127.0.0.1:0", "127.0.0.1:0"]\nworkers = 3\n')
        successor = upgrade(folder)
        told = status(folder)
        assert len([worker for worker in told["workers"] if worker["state"] == "ready"]) == 3
        assert len(told["listeners"]) == 2
        assert f"127.0.0.1:{server.port} (tcp)" in told["listeners"]
        server.wait()
        # The address that is not wanted any more has gone, with its file.
        assert not path.exists()
        end(successor)


@rounds(2, 4)
def test_nothing_is_lost_while_it_upgrades_again_and_again(folder: Path, rounds: int) -> None:
    with serving(folder) as server:
        served = [0] * 3
        lost: list[str] = []
        done = threading.Event()

        def client(number: int) -> None:
            while not done.is_set():
                try:
                    if len(ask(server)) != 4:
                        lost.append("no answer")
                    served[number] += 1
                except OSError as exc:
                    lost.append(repr(exc))

        clients = [threading.Thread(target=client, args=(number,)) for number in range(len(served))]
        for thread in clients:
            thread.start()
        pids = [server.pid]
        try:
            for version in range(rounds):
                install(folder, f"v{version}")
                pids.append(upgrade(folder))
                wait_until(lambda: gone(pids[-2]))
        finally:
            done.set()
            for thread in clients:
                thread.join()
        assert lost == []
        assert sum(served) > 100
        end(pids[-1])
        assert session_members(server.pid) == []


@pytest.mark.slow
def test_a_second_upgrade_ends_the_predecessor_that_still_drains_first(folder: Path) -> None:
    with serving(folder, "--drain-timeout", "0.5") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, sock.makefile("rb") as file:
            sock.sendall(b"stay\n")
            file.readline()
            successor = upgrade(folder)
            # The one before does not begin another one.
            server.signal(signal.SIGUSR2)
            wait_until(lambda: f"this supervisor has handed over to {successor}" in server.stderr())
            server.signal(signal.SIGHUP)
            wait_until(lambda: "not reloading (SIGHUP)" in server.stderr())
            assert status(folder)["predecessor"] == server.pid
            third = upgrade(folder)
            assert f"the previous supervisor ({server.pid}) ends first" in server.stderr()
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        assert server.wait() == 0
        wait_until(lambda: status(folder)["predecessor"] is None)
        assert status(folder)["pid"] == third
        end(third)


@pytest.mark.slow
def test_a_draining_predecessor_replaces_a_successor_that_dies(folder: Path) -> None:
    """It has the same socket file, and the last of the two removes that; never the file of another process."""
    path, lost = folder / "socket", folder / "lost"
    with serving(folder, "--pidfile", "pid", bind=["127.0.0.1:0", f"unix:{path}", f"unix:{lost}"]) as server:
        inode = path.stat().st_ino
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, sock.makefile("rb") as file:
            sock.sendall(b"stay\n")
            file.readline()
            successor = upgrade(folder)
            lost.unlink()
            foreign = replaced(lost)
            os.kill(successor, signal.SIGKILL)
            wait_until(lambda: "serving again in its place" in server.stderr())
            assert int(ask(server)[2]) == server.pid
            assert status(folder)["pid"] == server.pid
            assert (folder / "pid").read_text() == f"{server.pid}\n"
            sock.sendall(b"still\n")
            assert file.readline()
        assert path.stat().st_ino == inode
        assert ask(server, socket.AF_UNIX, str(path))[0] == "one"
        assert server.stop() == 0
        assert not path.exists()
        assert lost.stat().st_ino == foreign


def replaced(path: Path) -> int:
    """Bind a socket of this process at a path, and return the inode."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        return path.stat().st_ino


@pytest.mark.slow
def test_a_killed_predecessor_does_not_harm_its_successor(folder: Path) -> None:
    """Before the successor serves, and after: it goes on, and owns everything."""
    for delay in (0.0, 0.1, 0.2, 0.3, None):
        path = folder / "socket"
        with serving(folder, "--pidfile", "pid", bind=["127.0.0.1:0", f"unix:{path}"]) as server:
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
                sock.sendall(b"stay\n")
                sock.recv(100)
                server.signal(signal.SIGUSR2)
                wait_until(lambda: "upgrading (SIGUSR2)" in server.stderr())
                if delay is None:
                    wait_until(lambda: "took over" in server.stderr())
                else:
                    time.sleep(delay)
                server.signal(signal.SIGKILL)
                server.wait()
            # The workers of the one before die with it; what is new is served by the successor, if it was started.
            wait_until(lambda: _serves(server) or not session_members(server.pid), 20)
            if session_members(server.pid):
                wait_until(lambda: (folder / "pid").read_text() != f"{server.pid}\n", 20)
                successor = int((folder / "pid").read_text())
                assert ask(server, socket.AF_UNIX, str(path))[0] == "one"
                assert status(folder)["pid"] == successor
                end(successor)
                assert not path.exists()
            assert session_members(server.pid) == []
        for name in ("socket", "control", "pid"):
            (folder / name).unlink(missing_ok=True)


def _refused(server: Server) -> bool:
    with socket.socket() as sock:
        sock.settimeout(10)
        return sock.connect_ex(("127.0.0.1", server.port)) == errno.ECONNREFUSED


def _serves(server: Server) -> bool:
    try:
        return len(ask(server)) == 4
    except OSError:
        return False


@pytest.mark.slow
def test_a_stop_during_an_upgrade_ends_both_supervisors(folder: Path) -> None:
    for delay in (0.0, 0.05, 0.15, 0.25):
        with serving(folder) as server:
            server.signal(signal.SIGUSR2)
            wait_until(lambda: "upgrading (SIGUSR2)" in server.stderr())
            time.sleep(delay)
            if "took over" in server.stderr():
                end(status(folder)["pid"])
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
            for pid in session_members(server.pid):
                # It had just come to serve.
                with contextlib.suppress(OSError):
                    if "supervisor" in Path(f"/proc/{pid}/cmdline").read_text():
                        end(pid)
            wait_until(lambda: session_members(server.pid) == [])
            assert "Traceback" not in server.stderr()


def test_stopping_the_successor_stops_its_predecessor(folder: Path) -> None:
    with serving(folder) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(b"stay\n")
            sock.recv(100)
            successor = upgrade(folder)
            end(successor)
            wait_until(lambda: _refused(server), what="nobody accepts, and nobody is left waiting")
            assert server.worker_pids()
        assert server.wait() == 0
        assert "serving again" not in server.stderr()


@pytest.mark.slow
def test_the_sockets_of_a_reuse_port_server_are_handed_on(folder: Path) -> None:
    with serving(folder, "--reuse-port") as server:
        successor = upgrade(folder)
        assert {ask(server)[2] for _ in range(40)} == {str(successor)}
        assert server.wait() == 0
        end(successor)


@pytest.mark.slow
def test_hundreds_of_sockets_are_handed_on(folder: Path) -> None:
    """More than fit into one message of a unix socket (253, unix(7))."""
    with serving(folder, bind=[f"unix:{folder}/s{number}" for number in range(300)]) as server:
        successor = upgrade(folder)
        assert server.wait() == 0
        for number in range(0, 300, 37):
            assert ask(server, socket.AF_UNIX, f"{folder}/s{number}")[2] == str(successor)
        end(successor)
        assert list(folder.glob("s[0-9]*")) == []


@pytest.mark.slow
def test_what_a_handler_starts_holds_no_socket_after_an_upgrade(folder: Path) -> None:
    (folder / "service.py").write_text(
        "import os, subprocess\n"
        "async def handle(stream):\n"
        "    async for line in stream:\n"
        '        code = \'import os; print(sum(os.readlink(f"/proc/self/fd/{n}").startswith("socket") '
        'for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")))\'\n'
        "        done = subprocess.run(['python3', '-c', code], close_fds=False, capture_output=True)\n"
        "        stream.write(done.stdout)\n"
    )
    with serving(folder) as server:
        assert ask(server) == ["0"]
        successor = upgrade(folder)
        assert ask(server) == ["0"]
        server.wait()
        end(successor)


def test_an_invalid_hand_over_is_refused(folder: Path) -> None:
    for text in ("99", "rubbish", "0"):
        done = subprocess.run(
            [sys.executable, "-m", "prefork", "serve", "service:handle", "--bind", "127.0.0.1:0", "--control", "off"],
            env={**os.environ, "PREFORK_HANDOVER": text},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            cwd=folder,
        )
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "not a hand-over from another prefork" in line


#: System calls of each side of the hand-over, in their order; each is tried until it is made no more.
OLD = ["socketpair", "memfd_create", "clone", "recvfrom", "pidfd_send_signal"]
NEW = ["lseek", "listen", "ftruncate", "signalfd4", "pipe2", "clone", "sendto"]


@pytest.mark.deadline(240)
@pytest.mark.parametrize(
    ("victim", "calls"),
    [
        ("old", ["memfd_create", "pidfd_send_signal"]),
        slow("new", ["pipe2", "sendto"]),
        slow("old", OLD),
        slow("new", NEW),
    ],
)
@pytest.mark.slow
def test_a_kill_at_any_system_call_of_the_hand_over_leaves_one_server(
    folder: Path, victim: str, calls: list[str]
) -> None:
    """Whichever supervisor dies, and when: one of the two serves, and owns the files."""
    need("strace")
    outcomes = set()
    for call in calls:
        for when in range(1, 3):
            outcome = _killed_at(folder, victim, call, when)
            outcomes.add(outcome)
            if outcome == "nobody was killed":
                break
    assert len(outcomes) > 1, outcomes


def _killed_at(folder: Path, victim: str, call: str, when: int) -> str:
    path = folder / "socket"
    with serving(folder, "--pidfile", "pid", bind=["127.0.0.1:0", f"unix:{path}"]) as server:
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}", "-o", str(folder / "trace")]
        follow = ["-f"] if victim == "new" else []
        tracer = subprocess.Popen(["strace", "-qq", *follow, *inject, "-p", str(server.pid)], stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: "TracerPid:\t0" not in Path(f"/proc/{server.pid}/status").read_text())
            server.signal(signal.SIGUSR2)
            outcome = ""

            def settled() -> bool:
                nonlocal outcome
                log = server.stderr()
                if server._process.poll() == -signal.SIGKILL:
                    outcome = "the old one is dead"
                elif "upgrade failed" in log or "serving again in its place" in log:
                    outcome = "the new one is dead"
                elif "stopped (exit status 0)" in log:
                    outcome = "nobody was killed"
                return bool(outcome)

            wait_until(settled, 30, f"the end of it:\n{call} {when}")
        finally:
            tracer.kill()
            tracer.wait()
        if outcome == "the old one is dead":
            wait_until(lambda: _serves(server) or not session_members(server.pid), 20)
        supervisors = {ask(server)[2] for _ in range(10)} if session_members(server.pid) else set()
        assert len(supervisors) == (1 if outcome != "the old one is dead" else len(supervisors)), outcome
        assert len(supervisors) <= 1, "one generation serves"
        for supervisor in supervisors:
            assert ask(server, socket.AF_UNIX, str(path))[2] == supervisor
            wait_until(lambda: (folder / "pid").read_text() == f"{supervisor}\n")  # noqa: B023  # used within the loop
            if int(supervisor) != server.pid:
                end(int(supervisor))
            else:
                assert server.stop() == 0
            assert not path.exists()
        wait_until(lambda: session_members(server.pid) == [], what="everybody's end")
    for name in ("socket", "control", "pid"):
        (folder / name).unlink(missing_ok=True)
    return outcome
