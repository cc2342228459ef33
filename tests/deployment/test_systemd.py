"""The units of deploy/systemd: systemd accepts them, they are hardened, and the server runs as they say."""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from helpers.booted import HERE, boot
from helpers.deployment import DEPLOY, PREFORK, unit
from helpers.support import need

from prefork.cli.sources import Sources
from prefork.config import Settings
from prefork.core import time_limits
from prefork.testing import run_server

UNITS = DEPLOY / "systemd"
ECHO = "async def handle(stream):\n    async for line in stream: stream.write(line)\n"


def settings(folder: Path) -> Settings:
    """Return the settings that the service unit and its file give."""
    shutil.copy(UNITS / "prefork.toml", folder)
    return Sources({"config": [str(folder / "prefork.toml")]}, {}).settings()


# --- what systemd says ------------------------------------------------------------------------------------------------


def verify(folder: Path, change: tuple[str, str] = ("", "")) -> subprocess.CompletedProcess[str]:
    """Have systemd read the units, with the command of this machine, because it looks for the program."""
    names = ("app.service", "app.socket")
    for name in names:
        (folder / name).write_text(
            (UNITS / name).read_text().replace("/opt/app/venv/bin/prefork", PREFORK).replace(*change)
        )
    command = [
        "systemd-analyze",
        "verify",
        "--man=no",
        "--recursive-errors=yes",
        *(str(folder / each) for each in names),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=50)


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    need("systemd-analyze")
    done = verify(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_would_reject_a_wrong_unit(tmp_path: Path) -> None:
    need("systemd-analyze")
    assert "notified" in verify(tmp_path, ("Type=notify\n", "Type=notified\n")).stderr


def test_the_service_is_hardened() -> None:
    """`systemd-analyze security` counts from 0 (safe) to 10; the limit is 2.0."""
    need("systemd-analyze")
    rate = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(UNITS / "app.service")]
    done = subprocess.run(rate, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout[-200:]


def test_timeouts_of_the_service_unit_contain_preforks_own(tmp_path: Path) -> None:
    service, chosen = unit("app.service"), settings(tmp_path)
    assert int(service["TimeoutStartSec"]) > time_limits.successor_start_timeout(chosen.boot_timeout)
    longest = time_limits.successor_stop_timeout(chosen.drain_timeout, chosen.stop_timeout)
    assert int(service["TimeoutStopSec"]) >= longest
    assert f"--bind systemd:{unit('app.socket')['FileDescriptorName']} " in service["ExecStart"]


def test_the_hook_of_certbot_copies_the_pair(tmp_path: Path) -> None:
    lineage, target = tmp_path / "lineage", tmp_path / "tls"
    for folder in (lineage, target):
        folder.mkdir()
    (lineage / "fullchain.pem").write_text("certificate")
    (lineage / "privkey.pem").write_text("key")
    (target / "key.pem").write_text("old")
    variables = {"RENEWED_LINEAGE": str(lineage), "APP_TLS": str(target), "APP_GROUP": str(os.getgid())}
    subprocess.run([UNITS / "certbot-hook"], check=True, timeout=50, env={**os.environ, **variables})
    assert {path.name: path.read_text() for path in target.iterdir()} == {"cert.pem": "certificate", "key.pem": "key"}
    assert (target / "key.pem").stat().st_mode & 0o777 == 0o640


# --- what the server does ---------------------------------------------------------------------------------------------

#: prctl(2): no memory of this process and its children becomes executable, as MemoryDenyWriteExecute= has it.
CONFINED = """
import ctypes, os, sys
PR_SET_MDWE = 65
if ctypes.CDLL(None).prctl(PR_SET_MDWE, 1, 0, 0, 0):
    print("no PR_SET_MDWE: Linux 6.3 has it", file=sys.stderr)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
def test_a_server_makes_only_the_system_calls_that_the_unit_allows(tmp_path: Path, certs: dict[str, str]) -> None:
    """TLS, PROXY, agent, metrics; a start, connections, renewal, a reload, an upgrade, a stop: every call on record."""
    need("strace", "systemd-analyze")
    (tmp_path / "app.py").write_text(ECHO)
    (tmp_path / "tickets").write_text("".join(f"{base64.b64encode(os.urandom(80)).decode()}\n" for _ in range(3)))
    (tmp_path / "tickets").chmod(0o600)
    strace = ("strace", "-f", "-qq", "-c", "-S", "name", "-o", str(tmp_path / "calls"))
    prefix = (*strace, sys.executable, "-c", CONFINED)
    options = ["-w", "2", "--control", str(tmp_path / "control"), "--metrics", f"unix:{tmp_path / 'metrics'}"]
    options += ["--agent", f"unix:{tmp_path / 'agent'}", "--proxy-protocol", "any", "--proxy-from", "127.0.0.0/8"]
    options += [
        "--tls-cert",
        certs["cert"],
        "--tls-key",
        certs["key"],
        "--tls-ticket-key-file",
        str(tmp_path / "tickets"),
    ]
    context = ssl.create_default_context(cafile=certs["ca"])
    with run_server("app:handle", *options, cwd=tmp_path, prefix=prefix, timeout=60) as server:
        session = ask(server.port, context)
        ask(server.port, context, session)
        for command in ("reload", "upgrade", "status", "connections", "stacks"):
            done = prefork(command, "--control", str(tmp_path / "control"))
            assert done.returncode == 0, done.stderr
        ask(server.port, context, session)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tmp_path / "agent"))
            assert sock.recv(100).startswith(b"up ready")
        prefork("stop", "--control", str(tmp_path / "control"))
        server.wait()
    lines = (tmp_path / "calls").read_text().splitlines()
    made = {line.split()[-1] for line in lines if re.match(r"\s*[0-9]+\.[0-9]+ ", line)} - {"total"}
    assert {"accept4", "epoll_wait", "fork", "clone", "clone3"} & made
    assert made - allowed("@system-service") == set()


def ask(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSession:
    """Say hello behind a PROXY header and in TLS, and return the session."""
    with socket.create_connection(("127.0.0.1", port), 20) as plain:
        plain.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 9000\r\n")
        with context.wrap_socket(plain, server_hostname="localhost", session=session) as sock:
            sock.sendall(b"hello\n")
            assert sock.recv(100) == b"hello\n"
            assert sock.session is not None
            assert session is None or sock.session_reused
            return sock.session


def allowed(group: str) -> set[str]:
    """Return the system calls of a group of systemd, and of the groups in it."""
    shown = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, timeout=50)
    names = [line.strip() for line in shown.stdout.splitlines()[1:] if line.strip() and "#" not in line]
    return {call for name in names for call in (allowed(name) if name.startswith("@") else {name})}


def prefork(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "prefork", *words], capture_output=True, text=True, timeout=60)


# --- systemd itself ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_systemd_runs_the_units(tmp_path: Path) -> None:
    """systemd as process 1 of namespaces: enable, reload, upgrade, restart, watchdog, certificates, stop."""
    files: dict[str, Path | str] = {
        "/etc/systemd/system/app.service": UNITS / "app.service",
        "/etc/systemd/system/app.socket": UNITS / "app.socket",
        "/etc/app/prefork.toml": UNITS / "prefork.toml",
        "/etc/letsencrypt/renewal-hooks/deploy/app": UNITS / "certbot-hook",
        "/opt/app/app.py": ECHO,
        # What this machine needs, and a watchdog that does not take the test 30 s.
        "/etc/systemd/system/app.service.d/here.conf": f"[Service]\n{HERE}\nWatchdogSec=2\n",
    }
    for name in ("first", "second"):
        authority = trustme.CA()
        leaf = authority.issue_cert("localhost")
        files[f"/etc/lineage/{name}/ca.pem"] = authority.cert_pem.bytes().decode()
        files[f"/etc/lineage/{name}/fullchain.pem"] = leaf.cert_chain_pems[0].bytes().decode()
        files[f"/etc/lineage/{name}/privkey.pem"] = leaf.private_key_pem.bytes().decode()
    said, console = boot(tmp_path, files, Path(__file__).with_name("in_systemd.py"))
    assert said == "well\n", f"{said}--- systemd\n{console}"
