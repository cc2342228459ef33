"""Use the units as root beside a systemd of their own: start, reload, upgrade, restart, watchdog, certificates, stop.

`test_systemd.py` runs it in the namespaces that it boots; it prints "well" at the end.
"""

from __future__ import annotations

import base64
import os
import pwd
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

AS_APP = ("runuser", "-u", "app", "--", "/opt/app/venv/bin/prefork")
CODE = Path("/opt/app/app.py")


def run(*words: str, fails: bool = False) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode != 0) == fails, (words, done.stdout, done.stderr)
    return done.stdout


def shown(name: str) -> str:
    """Return a property of the service as systemd has it."""
    return run("systemctl", "show", "--value", "-p", name, "app.service").strip()


def connect() -> socket.socket:
    return socket.create_connection(("127.0.0.1", 9000), 20)


def ask(sock: socket.socket) -> bytes:
    sock.sendall(b"hello\n")
    return sock.recv(100)


def answer() -> bytes:
    with connect() as sock:
        return ask(sock)


def start() -> None:
    run("systemctl", "enable", "--now", "app.socket", "app.service")
    assert shown("ActiveState") == "active"
    assert shown("StatusText").startswith("ready: ")
    user = pwd.getpwnam("app").pw_uid
    status = Path(f"/proc/{shown('MainPID')}/status").read_text()
    for line in (f"Uid:\t{user}\t{user}", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "Seccomp:\t2"):
        assert line in status, status
    assert answer() == b"hello\n"


def reload() -> None:
    """New code is served; for code that does not start the reload fails, and changes nothing."""
    new = CODE.read_text().replace("write(line)", "write(b'new ' + line)")
    CODE.write_text(new)
    run("systemctl", "reload", "app")
    assert answer() == b"new hello\n"
    CODE.write_text("raise RuntimeError('broken')")
    run("systemctl", "reload", "app", fails=True)
    assert (shown("ActiveState"), answer()) == ("active", b"new hello\n")
    CODE.write_text(new)


def upgrade(open_before: socket.socket) -> None:
    before = shown("MainPID")
    assert ask(open_before) == b"new hello\n"
    run(*AS_APP, "upgrade", "--control", "/run/app/control")
    assert shown("MainPID") != before
    assert (shown("ActiveState"), shown("NRestarts"), answer()) == ("active", "0", b"new hello\n")
    assert ask(open_before) == b"new hello\n"


def restart(*opened: socket.socket) -> None:
    """What is open may end, and what connects meanwhile waits in the socket of systemd."""
    process = subprocess.Popen(["systemctl", "restart", "app"])
    while shown("ActiveState") == "active":
        time.sleep(0.02)
    with connect() as waiting:
        waiting.sendall(b"hello\n")
        for sock in opened:
            assert ask(sock) == b"new hello\n"
            sock.close()
        assert waiting.recv(100) == b"new hello\n"
    assert process.wait(60) == 0


def watchdog() -> None:
    """A supervisor that stands still is replaced."""
    before = shown("MainPID")
    os.kill(int(before), signal.SIGSTOP)
    assert answer() == b"new hello\n", "its workers serve"
    end = time.monotonic() + 20
    while shown("NRestarts") != "1" or shown("ActiveState") != "active":
        assert time.monotonic() < end, shown("Result")
        time.sleep(0.1)
    assert shown("MainPID") != before
    assert answer() == b"new hello\n"


def certificates() -> None:
    """The lines of the page are added, and the hook of certbot copies; then it copies a renewed pair."""
    hook = "/etc/letsencrypt/renewal-hooks/deploy/app"
    tls = Path("/etc/app/tls")
    tls.mkdir()
    subprocess.run([hook], check=True, env={**os.environ, "RENEWED_LINEAGE": "/etc/lineage/first"})
    keys = "".join(f"{base64.b64encode(os.urandom(80)).decode()}\n" for _ in range(3))
    (tls / "tickets").write_text(keys)
    os.chown(tls / "tickets", 0, pwd.getpwnam("app").pw_gid)
    (tls / "tickets").chmod(0o640)
    with open("/etc/app/prefork.toml", "a") as file:
        for name, path in (("cert", "cert.pem"), ("key", "key.pem"), ("ticket_key_file", "tickets")):
            file.write(f'tls_{name} = "/etc/app/tls/{path}"\n')
    run("systemctl", "reload", "app")
    session = handshake("first")
    assert handshake("first", session) is not None
    subprocess.run([hook], check=True, env={**os.environ, "RENEWED_LINEAGE": "/etc/lineage/second"})
    end = time.monotonic() + 20
    while handshake("second") is None:
        assert time.monotonic() < end
        time.sleep(0.1)


CONTEXTS: dict[str, ssl.SSLContext] = {}


def handshake(name: str, session: ssl.SSLSession | None = None) -> ssl.SSLSession | None:
    """Ask over TLS; return the session, which has to be a resumed one if `session` is given.

    None if the server has another certificate than that of this name.
    """
    context = CONTEXTS.setdefault(name, ssl.create_default_context(cafile=f"/etc/lineage/{name}/ca.pem"))
    try:
        with context.wrap_socket(connect(), server_hostname="localhost", session=session) as sock:
            assert ask(sock) == b"new hello\n"
            assert session is None or sock.session_reused
            return sock.session
    except ssl.SSLCertVerificationError:
        return None


def stop() -> None:
    run("systemctl", "stop", "app.socket", "app.service")
    assert (shown("ActiveState"), shown("Result")) == ("inactive", "success")
    assert not Path("/run/app").exists()


start()
reload()
with connect() as first:
    upgrade(first)
    second = connect()
    assert ask(second) == b"new hello\n"
    # One is with the supervisor before the upgrade, which still drains, and one with the new one.
    restart(first, second)
with connect() as third:
    assert ask(third) == b"new hello\n"
    restart(third)
watchdog()
certificates()
stop()
print("well")
