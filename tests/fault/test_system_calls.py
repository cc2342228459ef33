"""System calls that fail: before the first worker is ready the start ends with one line; later the server goes on.

`make inject` tries every call and every error; here is one of each kind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.renewal import InPlace, issue, serial_of, served
from helpers.servers import ECHO, command, echo, ready, serving, upgrade
from helpers.support import need, run_script, slow, traced, wait_until

from prefork.core.messages import ReadyMessage, encode
from prefork.parent.upgrade import Predecessor
from prefork.testing import run_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(ECHO)
    return tmp_path


def injecting(call: str, fault: str, *more: str) -> tuple[str, ...]:
    need("strace")
    return ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{fault}", *more)


def serve(folder: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    options = ["--bind", "127.0.0.1:0", "--bind", "unix:s", "--pidfile", "pid", "--control", "control"]
    return subprocess.run(
        [*prefix, sys.executable, "-m", "prefork", "serve", "service:handle", "-w", "2", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("call", "error"), [("pipe2", "EMFILE"), ("pipe2", "ENFILE"), slow("signalfd4", "EINVAL"), ("socketpair", "ENOMEM")]
)
def test_a_failing_system_call_at_the_start_is_one_line(folder: Path, call: str, error: str) -> None:
    """Or the server does without and is stopped after 6 s, because a busy machine starts late."""
    done = serve(folder, *injecting(call, f"error={error}"), "timeout", "--preserve-status", "6")
    lines = [line for line in done.stderr.splitlines() if line.startswith("prefork: ")]
    assert (done.returncode, len(lines)) in ((3, 1), (0, 0)), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["service.py"]


@pytest.mark.slow
def test_calls_that_a_sandbox_refuses_are_done_without(folder: Path) -> None:
    """Renewed certificates cannot be handed out then, so they take a reload, which comes by itself."""
    files = InPlace(folder, issue(folder / "first"))
    tls = ["--tls-cert", str(files.cert), "--tls-key", str(files.key)]
    with serving(folder, *tls, prefix=injecting("memfd_create", "error=ENOSYS")) as server:
        assert len(ready(folder)) == 2
        second = issue(folder / "second")
        files.renew(second)
        wait_until(lambda: {each["generation"] for each in ready(folder)} == {1}, 20)
        assert served(server.port) == serial_of(second)
        assert "reloading (files of TLS have changed)" in server.stderr()
        upgrade(folder)
        assert command(folder, "stop").returncode == 0
        assert server.wait() == 0


@pytest.mark.parametrize("error", ["ENOMEM", "EINVAL"])
def test_a_poll_that_fails_ends_nothing(folder: Path, error: str) -> None:
    with serving(folder) as server:
        with traced(server.pid, "-f", "-e", "trace=poll", "-e", f"inject=poll:error={error}:when=1..3"):
            for pid in server.worker_pids():
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: "a system call of the supervisor failed: " in server.stderr())
            wait_until(lambda: echo(("127.0.0.1", server.port)) == b"hello\n")
        wait_until(lambda: len(ready(folder)) == 2)
        assert server.stop() == 0
        assert "Traceback" not in server.stderr()


def test_a_limit_below_the_number_of_polled_descriptors_ends_nothing(folder: Path) -> None:
    need("prlimit")
    with serving(folder) as server:
        subprocess.run(["prlimit", "--pid", str(server.pid), "--nofile=6:"], check=True)
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        wait_until(lambda: "died: signal 9" in server.stderr())
        assert echo(("127.0.0.1", server.port)) == b"hello\n"
        subprocess.run(["prlimit", "--pid", str(server.pid), "--nofile=1024:"], check=True)
        wait_until(lambda: len(ready(folder)) == 2)
        assert server.stop() == 0
        assert "Traceback" not in server.stderr()


@pytest.mark.parametrize("error", ["OSError(23, 'Too many open files in system')", "ImportError('cannot map it')"])
def test_a_command_that_cannot_be_imported_is_one_line(folder: Path, error: str) -> None:
    (folder / "click.py").write_text(f"raise {error}\n")
    done = command(folder, "status", env={"PYTHONPATH": str(folder)})
    assert done.returncode == 3
    assert done.stderr.startswith("prefork: the command cannot run: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_child_that_cannot_begin_exits_with_3_in_one_line(folder: Path) -> None:
    code = """
import signal
from prefork.system.processes import System
def fail(*_):
    raise OSError(22, "Invalid argument")
signal.setitimer = fail
child = System().fork()
print(child.wait())
"""
    done = run_script(code)
    assert "code=3" in done.stdout, done.stdout + done.stderr
    assert ": a forked process cannot begin: invalid argument (in " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_status_that_cannot_be_sent_at_once_is_sent_later() -> None:
    ours, theirs = socket.socketpair()
    predecessor = Predecessor(1, theirs.detach())
    with ours, contextlib.closing(predecessor), socket.socket(fileno=os.dup(predecessor.fileno())) as filler:
        filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filled += filler.send(bytes(65536))
        predecessor.send(ReadyMessage())
        assert predecessor.next_due(5.0) is not None
        while filled:
            filled -= len(ours.recv(min(filled, 65536)))
        predecessor.check()
        assert ours.recv(100) == encode(ReadyMessage())
        assert predecessor.next_due(5.0) is None


def test_a_numeric_address_needs_no_codec() -> None:
    code = """
import sys, prefork
for sock in prefork.bind_sockets(0, "127.0.0.1"):
    sock.close()
print("encodings.idna" in sys.modules)
"""
    assert run_script(code).stdout == "False\n"


def test_a_signal_at_the_end_of_a_worker_is_no_error() -> None:
    code = """
import asyncio, os, signal
from prefork.worker import exit as worker_exit
loop = asyncio.new_event_loop()
loop.add_signal_handler(signal.SIGTERM, lambda: None)
close = loop._close_self_pipe
def close_late():
    close()
    os.kill(os.getpid(), signal.SIGTERM)
loop._close_self_pipe = close_late
async def main():
    return 7
print(worker_exit.run_until_complete_bounded(loop, main(), print))
"""
    done = run_script(code)
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_a_worker_that_may_not_read_its_descriptor_limit_serves(folder: Path) -> None:
    reject = "import resource\ndef refuse(*_):\n    raise PermissionError(1, 'no')\nresource.getrlimit = refuse\n"
    (folder / "service.py").write_text(reject + ECHO)
    with serving(folder, workers=1) as server:
        assert echo(("127.0.0.1", server.port)) == b"hello\n"
        assert server.stop() == 0
        assert "Traceback" not in server.stderr()


def test_a_worker_that_cannot_handle_signals_fails_the_start_in_one_line(folder: Path) -> None:
    reject = "import signal\ndef refuse(*_, **__):\n    raise OSError(22, 'Invalid argument')\n"
    (folder / "service.py").write_text(reject + "signal.set_wakeup_fd = refuse\n" + ECHO)
    done = serve(folder)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("prefork: ")]
    assert len(lines) == 1
    assert lines[0].startswith("prefork: invalid argument (in ")


def test_control_groups_that_may_not_be_read_are_survived(folder: Path) -> None:
    code = """
from prefork.system.memory import OomKills
from pathlib import Path
class Denied(type(Path())):
    def exists(self, **_):
        raise PermissionError(13, "Permission denied")
    def read_text(self, *_):
        if "memory" in str(self):
            raise PermissionError(13, "Permission denied")
        return super().read_text(*_)
print(OomKills(Denied("/")).attribute(1.0))
"""
    assert run_script(code).stdout == "False\n"


def test_a_reload_whose_current_directory_is_gone_is_survived(folder: Path) -> None:
    with serving(folder) as server:
        with traced(server.pid, "-f", "-e", "trace=getcwd", "-e", "inject=getcwd:error=ENOENT"):
            server.signal(signal.SIGHUP)
            wait_until(lambda: "the current directory is gone" in server.stderr() or "reloaded: " in server.stderr())
        assert echo(("127.0.0.1", server.port)) == b"hello\n"
        assert "Traceback" not in server.stderr()
        assert "bug" not in server.stderr()


@pytest.mark.slow
def test_a_full_disk_leaves_no_pidfile_of_a_dead_process(folder: Path) -> None:
    prefix = injecting("pwrite64", "error=ENOSPC:when=1")
    with serving(folder, "--pidfile", str(folder / "pid"), prefix=prefix) as server:
        pid = upgrade(folder)
        assert (folder / "pid").read_text() in (f"{pid}\n", "")
        assert "--pidfile " in server.stderr()
        assert command(folder, "stop").returncode == 0
        assert server.wait() == 0
        assert not (folder / "pid").exists()


# --- what the environment brings --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("value", ["0", "2", "-1", "99999", "x", "9" * 30, "pipe", "folder", "json"])
def test_an_invalid_hand_over_is_refused(folder: Path, value: str) -> None:
    fds: list[int] = []
    if value == "pipe":
        fds += os.pipe()
    elif value == "folder":
        fds.append(os.open(folder, os.O_RDONLY))
    elif value == "json":
        (folder / "json").write_text('{"format": 1, "channel": "x", "listeners": {"a": 1}, "pidfile": 7}')
        fds.append(os.open(folder / "json", os.O_RDONLY))
    text = str(fds[0]) if fds else value
    try:
        for words in (["status"], ["check", "service:handle"], ["serve", "service:handle"])[0 if value == "0" else 2 :]:
            done = subprocess.run(
                [sys.executable, "-m", "prefork", *words],
                env={**os.environ, "PREFORK_HANDOVER": text, "XDG_RUNTIME_DIR": str(folder)},
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=20,
                pass_fds=fds,
                stdin=subprocess.PIPE,
            )
            assert done.returncode == (2 if words[0] in ("serve", "status") else 0), done.stderr
            assert len(done.stderr.splitlines()) <= 1
            assert "Traceback" not in done.stderr
    finally:
        for fd in fds:
            os.close(fd)


# --- what the service raises ------------------------------------------------------------------------------------------

SILENT = """
class Silent(Exception):
    def __str__(self):
        raise ValueError("no text")
    __repr__ = __str__
"""


def test_an_exception_whose_text_raises_is_logged_by_its_name(folder: Path) -> None:
    (folder / "service.py").write_text(SILENT + "async def handle(stream):\n    raise Silent\n")
    with run_server("service:handle", "-w", "1", cwd=folder) as server:
        assert echo(("127.0.0.1", server.port)) == b""
        wait_until(lambda: "handler failed for" in server.stderr())
        assert "Silent: (Silent has no text: its __str__ raises)" in server.stderr()
        assert server.stop() == 0
    (folder / "service.py").write_text(SILENT + "raise Silent\n")
    done = command(folder, "check", "service:handle", env={"A": "B"})
    assert done.returncode == 3
    assert done.stderr.startswith("prefork: service service:handle: Silent: (Silent has no text")
    assert len(done.stderr.splitlines()) == 1


def test_a_signal_that_a_pidfd_cannot_send_is_sent_by_kill(folder: Path) -> None:
    with serving(folder, prefix=injecting("pidfd_send_signal", "error=EBADF")) as server:
        assert command(folder, "reload").returncode == 0
        assert command(folder, "stop").returncode == 0
        assert server.wait() == 0
        assert "killed" not in server.stderr()


def test_a_file_that_cannot_be_removed_at_once_is_removed(folder: Path) -> None:
    bind = ["127.0.0.1:0", f"unix:{folder / 's'}"]
    prefix = injecting("unlinkat", "error=EBUSY:when=1..2")
    with serving(folder, "--pidfile", "pid", bind=bind, prefix=prefix) as server:
        assert command(folder, "stop").returncode == 0
        assert server.wait() == 0
        assert sorted(path.name for path in folder.iterdir() if path.suffix != ".pyc") == ["service.py"]
