"""Workers that are given a user cannot become root again; the supervisor keeps what needs root."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.opened import open_folder, run_opened
from helpers.support import need, need_root, run_script

from prefork.testing import run_server

SERVICE = """
import json, os, socket, subprocess
async def handle(stream):
    async for line in stream:
        if line == b"who\\n":
            status = dict(l.split(":\\t", 1) for l in open("/proc/self/status").read().splitlines() if ":\\t" in l)
            try:
                os.setuid(0)
                back = True
            except OSError:
                back = False
            mask = os.umask(0)
            os.umask(mask)
            line = json.dumps({
                "uid": status["Uid"].split(), "gid": status["Gid"].split(), "groups": status["Groups"].split(),
                "no_new_privs": status["NoNewPrivs"], "caps": status["CapEff"], "back": back, "umask": mask,
            }).encode() + b"\\n"
        elif line == b"child\\n":
            # The descriptors that a program started by the handler finds open.
            out = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, close_fds=False).stdout
            line = b" ".join(out.split()) + b"\\n"
        stream.write(line)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    need_root()
    with open_folder() as place:
        (place / "service.py").write_text(SERVICE)
        yield place


def ask(port: int, word: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock, sock.makefile("rb") as file:
        sock.sendall(word + b"\n")
        return file.readline()


IDENTITY = """
import json, os, signal, socket
from pathlib import Path
from prefork.testing import run_server
from helpers.proc import gone
from helpers.support import wait_until

def ask(port, word):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock, sock.makefile("rb") as file:
        sock.sendall(word + b"\\n")
        return file.readline()

options = ["--user", "nobody", "--group", "daemon", "--umask", "027", "-w", "2"]
with run_server("service:handle", *options) as server:
    for turn in range(2):
        print(ask(server.port, b"who").decode(), end="")
        # The same after a reload: the supervisor has kept what it needs.
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.stderr().count("reloaded: ") > turn)
    assert "Uid:\\t0\\t0\\t0\\t0" in Path(f"/proc/{server.pid}/status").read_text()
    # setuid clears PR_SET_PDEATHSIG, so the workers set it afterwards; and they watch the lifeline.
    workers = server.worker_pids()
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: all(map(gone, workers)), what="the end of the workers")
"""


def test_a_worker_has_only_the_rights_of_its_user(folder: Path) -> None:
    lines = run_opened(IDENTITY, folder).splitlines()
    assert len(lines) == 2
    for line in lines:
        told = json.loads(line)
        assert told["uid"] == ["65534"] * 4
        assert told["gid"] == ["1"] * 4
        assert "0" not in told["groups"]
        assert told["no_new_privs"] == "1"
        assert int(told["caps"], 16) == 0
        assert told["back"] is False
        assert told["umask"] == 0o027


def test_a_program_of_a_handler_inherits_no_descriptor(folder: Path) -> None:
    with run_server("service:handle", "-w", "1", cwd=folder) as server:
        held = {int(fd) for fd in ask(server.port, b"child").split()}
        # 0 to 2, and the directory that ls reads.
        assert held <= {0, 1, 2, 3}


LOW_PORT = """
import signal, socket
from prefork.testing import run_server
from helpers.support import wait_until
with run_server("service:handle", "--user", "nobody", "-w", "1", bind=["127.0.0.1:80"]) as server:
    for turn in range(2):
        with socket.create_connection(("127.0.0.1", 80), 10) as sock:
            sock.sendall(b"hello\\n")
            print(sock.makefile().readline(), end="")
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.stderr().count("reloaded: ") > turn)
"""


def test_a_low_port_is_kept_over_a_reload(folder: Path) -> None:
    assert run_opened(LOW_PORT, folder) == "hello\nhello\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--user", "no-such-user"], "--user no-such-user: there is no such user"),
        (["--group", "no-such-group"], "--group no-such-group: there is no such group"),
        (["--user", "99999999999"], "--user 99999999999: there is no such user"),
        (["--user", "²"], "--user ²: there is no such user"),
        (["--group", "9" * 5000], "--group 999"),
        (["--umask", "9"], "--umask 9: must be up to three octal digits"),
    ],
)
def test_an_unknown_user_or_group_is_refused(folder: Path, options: list[str], text: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefork", "check", "service:handle", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_only_root_can_change_the_user() -> None:
    need_root()
    code = """
import os
os.setresuid(65534, 65534, 65534)
from prefork.errors import ConfigError
from prefork.system.credentials import resolve_identity
try:
    resolve_identity("root", "")
except ConfigError as exc:
    print(exc)
print(resolve_identity("", ""))
"""
    # Imported before the change: another user may not read this Python.
    preamble = "import prefork.system.credentials, pwd, grp"
    assert run_script(f"{preamble}\n{code}").stdout == "--user root: only root can change it\nNone\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "error"), [("setgroups", "EPERM"), ("setresgid", "EPERM"), ("setresuid", "EPERM"), ("setresuid", "EAGAIN")]
)
def test_a_worker_that_cannot_give_up_root_does_not_serve(folder: Path, call: str, error: str) -> None:
    need("strace")
    trace = ("strace", "-f", "-qq", "-e", f"trace={call}", "-e", f"inject={call}:error={error}", "-o", "/dev/null")
    with run_server(
        "service:handle", "--user", "nobody", "-w", "1", cwd=folder, prefix=trace, wait_ready=False
    ) as server:
        assert server.wait(30) == 3
        assert server.stderr().splitlines()[-1].startswith("prefork: --user, --group: this process cannot become ")
        assert "ready: " not in server.stderr()


def test_a_worker_that_can_regain_root_does_not_serve(folder: Path) -> None:
    """The system call reports success and changes nothing; the check afterwards notices."""
    need("strace")
    trace = ("strace", "-f", "-qq", "-e", "trace=setresuid", "-e", "inject=setresuid:retval=0", "-o", "/dev/null")
    with run_server(
        "service:handle", "--user", "nobody", "-w", "1", cwd=folder, prefix=trace, wait_ready=False
    ) as server:
        assert server.wait(30) == 3
        assert "the user or group did not change" in server.stderr()


HELPER = """
import os, subprocess
from pathlib import Path
from prefork.testing import run_server
import socket

# A program with the set-user-ID bit, as sudo is one.
helper = Path("helper")
helper.write_bytes(Path("/usr/bin/id").read_bytes())
helper.chmod(0o4755)
Path("service.py").write_text('''
import subprocess
async def handle(stream):
    async for line in stream:
        stream.write(subprocess.run(["./helper", "-u"], capture_output=True).stdout)
''')
with run_server("service:handle", "--user", "nobody", "-w", "1") as server:
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall(b"x\\n")
        print(sock.makefile().readline(), end="")
"""


def test_a_set_user_id_program_gains_nothing(folder: Path) -> None:
    assert run_opened(HELPER, folder) == "65534\n"


def test_control_socket_pidfile_and_socket_have_their_modes_whatever_the_umask(folder: Path) -> None:
    shell = ("sh", "-c", 'umask 0 && exec "$@"', "sh")
    options = ["--control", f"{folder}/control", "--pidfile", f"{folder}/pid", "-w", "1"]
    bind = ["127.0.0.1:0", f"unix:{folder}/socket"]
    with run_server("service:handle", *options, cwd=folder, prefix=shell, bind=bind) as server:
        modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in ("control", "pid", "socket")}
        assert modes == {"control": 0o600, "pid": 0o644, "socket": 0o600}
        assert server.stop() == 0


MAD = """
import ctypes, os, random, signal, sys, threading

async def handle(stream):
    async for line in stream:
        word = line.decode().strip()
        if word == "pipe":
            # Write to the supervisor: rubbish, huge lines, messages of other workers, its own again and again.
            dice = random.Random(7)
            lines = [b'{"ready": true}', b'{"stopped_accepting": true}', b'{"spent": "again"}',
                     b'{"unable": "\\x1b[31mno"}', b'{"stopping": true}', b"[" * 5000, b'{"ready": 1e999}',
                     b"File x\\n  stack", b"\\x00\\xff" * 999]
            for fd in range(3, 64):
                try:
                    if os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
                        os.set_blocking(fd, False)
                        for _ in range(3000):
                            os.write(fd, dice.choice(lines) + dice.choice([b"\\n", b""]))
                except OSError:
                    continue
        elif word == "page":
            # Fill its own page of the scoreboard with nonsense.
            for entry in open("/proc/self/maps"):
                if "prefork-scoreboard" in entry and " rw-s " in entry:
                    start, end = (int(part, 16) for part in entry.split()[0].split("-"))
                    ctypes.memset(start, 0x7F, end - start)
        stream.write(b"%d\\n" % os.getpid())
"""


@pytest.mark.parametrize("word", ["pipe", "page"])
def test_a_misbehaving_worker_affects_only_itself(tmp_path: Path, word: str) -> None:
    (tmp_path / "service.py").write_text(MAD)
    control = str(tmp_path / "control")
    with run_server("service:handle", "-w", "3", "--control", control, cwd=tmp_path) as server:
        before = set(server.worker_pids())
        mad = int(ask(server.port, word.encode()))
        answers = {int(ask(server.port, b"hello")) for _ in range(60)}
        assert before - {mad} <= set(server.worker_pids())
        assert answers - {mad}
        done = subprocess.run(
            [sys.executable, "-m", "prefork", "status", "--control", control],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert f"supervisor {server.pid}, serving" in done.stdout
        assert "\x1b" not in server.stderr()
        assert server._process.poll() is None
        assert server.stop() == 0
