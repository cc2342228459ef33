"""The files that the deployment page shows are accepted by the programs that read them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.support import need

from prefork.testing import run_server

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()


def shown_files() -> dict[str, str]:
    """Return the files that begin with a comment that names their path, by name."""
    blocks = re.findall(r"```\w*\n(# /etc/\S+\n.*?)```", PAGE, re.S)
    return {Path(block.split("\n")[0].removeprefix("# ")).name: block for block in blocks}


def verify_units(folder: Path, files: dict[str, str]) -> subprocess.CompletedProcess[str]:
    units = [folder / name for name in ("app.service", "app.socket")]
    for unit in units:
        # systemd-analyze looks for the program; the one that is here has the same command line.
        text = files[unit.name].replace("/opt/app/venv/bin/prefork", str(Path(sys.executable).with_name("prefork")))
        unit.write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *map(str, units)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50)


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    need("systemd-analyze")
    done = verify_units(tmp_path, shown_files())
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_would_reject_a_wrong_unit(tmp_path: Path) -> None:
    need("systemd-analyze")
    files = shown_files()
    files["app.service"] = files["app.service"].replace("Type=notify\n", "Type=notified\n")
    assert "notified" in verify_units(tmp_path, files).stderr


def test_the_service_takes_the_sockets_of_the_socket_unit() -> None:
    files = shown_files()
    name = re.search(r"^FileDescriptorName=(\w+)$", files["app.socket"], re.M)
    assert name is not None
    assert f"--bind systemd:{name[1]} " in files["app.service"]


def test_the_service_is_hardened(tmp_path: Path) -> None:
    """`systemd-analyze security` counts from 0 (safe) to 10; the limit is 2.0."""
    need("systemd-analyze")
    (tmp_path / "app.service").write_text(shown_files()["app.service"])
    rate = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(tmp_path / "app.service")]
    done = subprocess.run(rate, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout[-200:]


#: prctl(2): no memory of this process and its children becomes executable, as MemoryDenyWriteExecute= has it.
CONFINED = """
import ctypes, os, sys
PR_SET_MDWE = 65
if ctypes.CDLL(None).prctl(PR_SET_MDWE, 1, 0, 0, 0):
    print("no PR_SET_MDWE: Linux 6.3 has it", file=sys.stderr)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
def test_a_server_makes_only_the_system_calls_that_the_unit_allows(tmp_path: Path) -> None:
    """A start, connections, a reload, an upgrade, metrics and a stop, with every system call on record."""
    need("strace", "systemd-analyze")
    (tmp_path / "app.py").write_text("async def handle(stream):\n    async for line in stream: stream.write(line)\n")
    strace = ("strace", "-f", "-qq", "-c", "-S", "name", "-o", str(tmp_path / "calls"))
    prefix = (*strace, sys.executable, "-c", CONFINED)
    options = ("-w", "2", "--control", str(tmp_path / "control"), "--metrics", f"unix:{tmp_path / 'metrics'}")
    with run_server("app:handle", *options, cwd=tmp_path, prefix=prefix, timeout=60) as server:
        assert exchange(server.port, b"hello\n") == b"hello\n"
        for command in ("reload", "upgrade", "status", "connections", "stacks"):
            done = prefork(command, "--control", str(tmp_path / "control"))
            assert done.returncode == 0, done.stderr
        assert exchange(server.port, b"again\n") == b"again\n"
        prefork("stop", "--control", str(tmp_path / "control"))
        server.wait()
    lines = (tmp_path / "calls").read_text().splitlines()
    made = {line.split()[-1] for line in lines if re.match(r"\s*[0-9]+\.[0-9]+ ", line)} - {"total"}
    assert {"accept4", "epoll_wait", "fork", "clone", "clone3"} & made
    assert made - allowed("@system-service") == set()


def allowed(group: str) -> set[str]:
    """Return the system calls of a group of systemd, and of the groups in it."""
    shown = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, timeout=50)
    names = [line.strip() for line in shown.stdout.splitlines()[1:] if line.strip() and "#" not in line]
    return {call for name in names for call in (allowed(name) if name.startswith("@") else {name})}


def exchange(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(data)
        return sock.recv(100)


def prefork(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "prefork", *words], capture_output=True, text=True, timeout=60)


def test_timeouts_of_the_service_unit_contain_preforks_own() -> None:
    from prefork.config import Settings

    unit = dict(re.findall(r"^(\w+)=(.*)$", shown_files()["app.service"], re.M))
    assert int(unit["TimeoutStartSec"]) > Settings().boot_timeout
    assert int(unit["TimeoutStopSec"]) >= Settings().drain_timeout + 10


def test_the_dockerfile_starts_the_server_without_a_shell() -> None:
    (dockerfile,) = re.findall(r"```dockerfile\n(.*?)```", PAGE, re.S)
    commands = [json.loads(each) for each in re.findall(r"^(?:ENTRYPOINT|HEALTHCHECK CMD) (.*)$", dockerfile, re.M)]
    assert [command[:2] for command in commands] == [["prefork", "status"], ["prefork", "serve"]]
    # A shell as process 1 would get TERM in place of the supervisor.
    assert all(isinstance(command, list) for command in commands)
