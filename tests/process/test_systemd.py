"""Sockets that a parent or systemd has bound, and notifications to the service manager."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.proc import session_members
from helpers.support import free_port, kill_session, need, slow, wait_until

from prefork.testing import run_server

SERVICE = """
import asyncio, os, time
async def handle(stream):
    async for line in stream:
        if line == b"environment\\n":
            line = " ".join(sorted(os.environ)).encode() + b"\\n"
        if line == b"hang\\n":
            time.sleep(60)
        stream.write(line)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def ask(port: int, word: bytes = b"hello\n") -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock, sock.makefile("rb") as file:
        sock.sendall(word)
        return file.readline()


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "prefork", "serve", "service:handle", "-w", "2", "--control", "off", *options]


def test_sockets_of_systemd_are_served(folder: Path) -> None:
    need("systemd-socket-activate")
    first, second = free_port(), free_port()
    activator = subprocess.Popen(
        ["systemd-socket-activate", "-l", f"127.0.0.1:{first}", "-l", f"127.0.0.1:{second}"]
        + ["--fdname=one:two", "-E", "PATH", *command("--bind", "systemd:two", "--bind", "systemd:one")],
        cwd=folder,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        # The first connection starts the server, which then serves it.
        assert _patiently(first) == b"hello\n"
        assert ask(second) == b"hello\n"
        names = ask(first, b"environment\n").decode().split()
        assert not [name for name in names if name.startswith(("LISTEN_", "NOTIFY_"))]
        activator.terminate()
        assert activator.wait(20) == 0
        assert activator.stderr is not None
        text = activator.stderr.read().decode()
        told = re.findall(r"prefork|listening on 127.0.0.1:(\d+) \(tcp\)", text)
        assert [int(port) for port in told if port][-2:] == [second, first]
    finally:
        kill_session(activator.pid)
        activator.wait()
        assert activator.stderr is not None
        activator.stderr.close()


def _patiently(port: int) -> bytes:
    end = time.monotonic() + 20
    while True:
        try:
            return ask(port)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def refused(folder: Path, *options: str, **variables: str) -> str:
    done = subprocess.run(
        command(*options), cwd=folder, capture_output=True, text=True, timeout=30, env={**os.environ, **variables}
    )
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.slow
def test_sockets_that_were_not_passed_are_refused(folder: Path) -> None:
    assert "no sockets were passed to this process" in refused(folder, "--bind", "systemd")
    # The variables of another process, which were inherited too far.
    line = refused(folder, "--bind", "systemd", LISTEN_PID="1", LISTEN_FDS="1")
    assert "no sockets were passed to this process" in line
    assert "bind fd:77: bad file descriptor" in refused(folder, "--bind", "fd:77")
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    try:
        done = subprocess.run(
            command("--bind", f"fd:{reader}"), cwd=folder, capture_output=True, text=True, timeout=30, pass_fds=[reader]
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 4
    assert "it is not a socket" in done.stderr


#: Starts prefork as systemd would, in this process: variables, and descriptors from 3 on.
ACTIVATE = """
import os, socket, sys
kinds, variables, command = eval(sys.argv[1]), eval(sys.argv[2]), eval(sys.argv[3])
made = []
for kind in kinds:
    if kind == "listening":
        made.append(socket.create_server(("127.0.0.1", 0)))
    elif kind == "tcp":
        made.append(socket.socket())
    elif kind == "udp":
        made.append(socket.socket(type=socket.SOCK_DGRAM))
        made[-1].bind(("127.0.0.1", 0))
    elif kind == "file":
        made.append(open("/dev/null"))
duplicates = [os.dup2(each.fileno(), 50 + number) for number, each in enumerate(made)]
for number, fd in enumerate(duplicates):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ.update({name: value.replace("PID", str(os.getpid())) for name, value in variables.items()})
os.execv(sys.executable, command)
"""

ONE = {"LISTEN_PID": "PID", "LISTEN_FDS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "variables", "reason"),
    [
        (["listening"], {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, "no sockets were passed"),
        slow(["listening"], {"LISTEN_FDS": "1"}, "no sockets were passed"),
        slow(["listening"], {"LISTEN_PID": "PID"}, "no sockets were passed"),
        slow(["listening"], {"LISTEN_PID": "PID", "LISTEN_FDS": "0"}, "no sockets were passed"),
        slow(["listening"], {"LISTEN_PID": "PID", "LISTEN_FDS": "-1"}, "no sockets were passed"),
        slow(["listening"], {"LISTEN_PID": "PID", "LISTEN_FDS": "abc"}, "no sockets were passed"),
        (["listening"], {"LISTEN_PID": "PID", "LISTEN_FDS": "\u00b2"}, "no sockets were passed"),
        ([], {"LISTEN_PID": "PID", "LISTEN_FDS": str(2**31)}, "no sockets were passed"),
        (["listening"], {**ONE, "LISTEN_FDNAMES": "web"}, "no socket with that name was passed; there are: web"),
        (["file"], {**ONE, "LISTEN_FDNAMES": "app"}, "it is not a socket"),
        (["udp"], {**ONE, "LISTEN_FDNAMES": "app"}, "it is not a listening stream socket"),
        (["tcp"], {**ONE, "LISTEN_FDNAMES": "app"}, "it is not a listening stream socket"),
    ],
)
def test_sockets_and_variables_that_systemd_would_not_pass_are_refused(
    folder: Path, kinds: list[str], variables: dict[str, str], reason: str
) -> None:
    arguments = [repr(kinds), repr(variables), repr(command("--bind", "systemd:app"))]
    done = subprocess.run(
        [sys.executable, "-c", ACTIVATE, *arguments], cwd=folder, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 4, done.stderr
    (line,) = done.stderr.splitlines()
    assert reason in line


def test_unused_sockets_do_not_reach_programs_of_a_handler(folder: Path) -> None:
    (folder / "service.py").write_text(
        "import subprocess\n"
        "async def handle(stream):\n"
        "    async for line in stream:\n"
        "        out = subprocess.run(['ls', '-l', '/proc/self/fd'], close_fds=False, capture_output=True).stdout\n"
        "        stream.write(b'%d\\n' % out.count(b'socket:'))\n"
    )
    variables = {"LISTEN_PID": "PID", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:app:c"}
    arguments = [repr(["listening"] * 3), repr(variables), repr(command("--bind", "systemd:app"))]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", ACTIVATE, *arguments],
            cwd=folder,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "ready: " in (folder / "log").read_text())
        (port,) = re.findall(r"listening on 127.0.0.1:(\d+)", (folder / "log").read_text())
        assert ask(int(port)) == b"0\n"
    finally:
        kill_session(process.pid)
        process.wait()


def test_an_upgrade_notifies_systemd_of_the_main_pid(folder: Path, manager: socket.socket) -> None:
    env = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "60000000"}
    with run_server("service:handle", "-w", "1", "--drain-delay", "0.5", cwd=folder, env=env) as server:
        states(manager, "READY=1")
        server.signal(signal.SIGUSR2)
        told = states(manager, "MAINPID=")
        # The successor notifies the same socket.
        assert any(each.get("STATUS") == "ready: 1 worker" for each in told)
        successor = int(told[-1]["MAINPID"])
        assert server.wait() == 0
        os.kill(successor, signal.SIGTERM)
        # From the first of them on the time to stop passes.
        for phase in ("lame duck (SIGTERM)", "stopping (SIGTERM)"):
            assert states(manager, "STOPPING=1")[-1]["STATUS"].startswith(phase)
        wait_until(lambda: session_members(server.pid) == [])


def test_a_socket_is_inherited_by_its_descriptor_number(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            command("--bind", f"fd:{listener.fileno()}"),
            cwd=folder,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        try:
            assert _patiently(port) == b"hello\n"
            process.terminate()
            assert process.wait(20) == 0
            # The test's own descriptor is still open.
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
        finally:
            kill_session(process.pid)
            process.wait()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Yield a socket that receives notifications as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


def states(manager: socket.socket, until: str) -> list[dict[str, str]]:
    """Return the notifications up to one that contains `until`."""
    seen = []
    while True:
        text = manager.recv(4096).decode()
        seen.append(dict(line.split("=", 1) for line in text.splitlines()))
        if until in text:
            return seen


def test_systemd_is_notified_of_each_state(folder: Path, manager: socket.socket) -> None:
    env = {"NOTIFY_SOCKET": str(folder / "notify")}
    (folder / "prefork.toml").touch()
    with run_server("service:handle", "-w", "2", cwd=folder, env=env) as server:
        (ready,) = states(manager, "READY=1")
        assert ready == {"READY": "1", "STATUS": "ready: 2 workers"}
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        server.signal(signal.SIGHUP)
        reloading, reloaded = states(manager, "READY=1")
        assert reloading["RELOADING"] == "1"
        assert before <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert reloaded["STATUS"].startswith("reloaded")
        (folder / "service.py").write_text("broken")
        server.signal(signal.SIGHUP)
        _, kept = states(manager, "READY=1")
        assert kept["STATUS"].startswith("reload failed, the running workers stay")
        assert "NOTIFY_SOCKET" not in ask(server.port, b"environment\n").decode().split()
        # A manager that requested a reload by a signal waits for both states (Type=notify-reload).
        (folder / "prefork.toml").write_text("rubbish")
        server.signal(signal.SIGHUP)
        reloading, refused = states(manager, "READY=1")
        assert reloading["RELOADING"] == "1"
        assert refused["STATUS"].startswith("not reloading (SIGHUP): ")
        server.signal(signal.SIGTERM)
        (stopping,) = states(manager, "STOPPING=1")
        assert "SIGTERM" in stopping["STATUS"]
        assert server.wait() == 0


def test_the_watchdog_is_notified_only_while_a_worker_serves(folder: Path, manager: socket.socket) -> None:
    env = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "400000"}
    began = time.monotonic()
    with run_server("service:handle", "-w", "1", "--hang-timeout", "20", cwd=folder, env=env) as server:
        states(manager, "READY=1")
        for _ in range(5):
            assert manager.recv(100) == b"WATCHDOG=1"
        assert time.monotonic() - began > 0.5
        # Without a worker that serves there is no ping, because the watchdog is for the service.
        os.kill(server.worker_pids()[0], signal.SIGSTOP)
        (folder / "service.py").write_text("raise SystemExit(1)")
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        wait_until(lambda: "cannot start" in server.stderr())
        manager.setblocking(False)
        while True:
            try:
                manager.recv(100)
            except BlockingIOError:
                break
        manager.settimeout(0.6)
        with pytest.raises(TimeoutError):
            manager.recv(100)


def test_a_missing_notify_socket_is_ignored(folder: Path) -> None:
    env = {"NOTIFY_SOCKET": "@no-listener-here", "WATCHDOG_USEC": "100000"}
    with run_server("service:handle", "-w", "1", cwd=folder, env=env) as server:
        assert ask(server.port) == b"hello\n"
        assert server.stop() == 0
