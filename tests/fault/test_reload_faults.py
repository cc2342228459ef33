"""A reload may find rubbish or nothing at all: running workers then go on unchanged, and the log says why."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import stat
from pathlib import Path

import pytest
import trustme
from helpers import streams
from helpers.servers import (
    ECHO,
    Asked,
    answer,
    asking,
    command,
    echo,
    leave_descriptors,
    ready,
    serves,
    serving,
    state,
    status,
)
from helpers.support import need, need_root, wait_until

from prefork.testing import Server, run_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(ECHO)
    return tmp_path


def refused(server: Server, reason: str) -> None:
    """A reload by a signal: not done, for this reason, and everything goes on."""
    workers = set(server.worker_pids())
    before = server.stderr().count("not reloading (SIGHUP): ")
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.stderr().count("not reloading (SIGHUP): ") > before)
    (line,) = [line for line in server.stderr().splitlines() if "not reloading" in line][before:]
    assert reason in line
    assert "Traceback" not in server.stderr()
    assert serves(server)
    assert set(server.worker_pids()) == workers


WRONG = [
    ("workers = " + "9" * 5000, "not a TOML file: "),
    ("workers = " + "[" * 5000, "not a TOML file: "),
    ("workers", "not a TOML file: "),
    ('bind = ["127.0.0.1:0", "fd:3"]', "--bind fd:3: can be used at the start only; restart"),
    ('bind = ["127.0.0.1:0", "systemd:web"]', "--bind systemd:web: can be used at the start only; restart"),
    ('bind = ["127.0.0.1:0", "some.host.example:9"]', "a host name is not looked up while the server runs"),
    ('bind = ["127.0.0.1:0"]\nreuse_port = true', "--reuse-port: cannot be changed by a reload"),
    ('bind = ["127.0.0.1:0"]\nworkers = 257', "workers = 257: at most"),
]


def test_a_reload_with_wrong_settings_changes_nothing(folder: Path) -> None:
    config = folder / "prefork.toml"
    config.write_text('bind = ["127.0.0.1:0"]\n')
    with run_server("service:handle", "--config", str(config), cwd=folder, bind=[]) as server:
        for settings, reason in WRONG:
            config.write_text(settings + "\n")
            refused(server, reason)
        assert server.stop() == 0


@pytest.mark.parametrize("which", ["config", "cert"])
def test_a_reload_of_a_file_that_would_block_fails_at_once(folder: Path, which: str, certs: dict[str, str]) -> None:
    """A FIFO in its place would be opened for ever."""
    config, cert = folder / "prefork.toml", folder / "cert.pem"
    config.write_text("")
    cert.write_bytes(Path(certs["cert"]).read_bytes())
    tls = ["--tls-cert", str(cert), "--tls-key", certs["key"]]
    with serving(folder, "--config", str(config), *(tls if which == "cert" else [])) as server:
        path = config if which == "config" else cert
        path.unlink()
        os.mkfifo(path)
        server.signal(signal.SIGHUP)
        wait_until(lambda: "not a regular file" in server.stderr())
        assert status(folder)["state"] == "serving"
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("spare", [0, 1, 2])
def test_failed_reloads_leave_no_descriptor_open(folder: Path, spare: int, certs: dict[str, str]) -> None:
    need("prlimit")
    with serving(folder, "--tls-cert", certs["cert"], "--tls-key", certs["key"], workers=1) as server:
        leave_descriptors(server.pid, spare)
        server.signal(signal.SIGHUP)
        wait_until(lambda: "too many open files" in server.stderr())
        assert "Traceback" not in server.stderr()
        assert len(server.worker_pids()) == 1
        leave_descriptors(server.pid, 30)
        done = command(folder, "reload")
        assert done.returncode == 0, done.stderr
        assert server.stop() == 0


def test_a_failed_reload_changes_nothing_that_workers_share(folder: Path, certs: dict[str, str]) -> None:
    """The certificate, the mode of a socket's file, the log level: all of it belongs to what was to come."""
    path, config = folder / "socket", folder / "prefork.toml"
    config.write_text(f'bind = ["127.0.0.1:0", "unix:{path},mode=600"]\ntls_cert = "cert.pem"\ntls_key = "key.pem"\n')
    # What changes is not used before the reload.
    config.write_text(config.read_text() + 'tls_watch = "off"\n')
    for name in ("cert", "key"):
        (folder / f"{name}.pem").write_bytes(Path(certs[name]).read_bytes())
    with serving(folder, bind=[]) as server:
        before = _certificate(server)
        leaf = streams.authority()[0].issue_cert("localhost")
        leaf.private_key_pem.write_to_path(str(folder / "key.pem"))
        leaf.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
        config.write_text(config.read_text().replace("mode=600", "mode=666") + 'log_level = "error"\n')
        (folder / "service.py").write_text("raise OSError('broken')\n")
        done = command(folder, "reload")
        assert done.returncode == 3
        assert "OSError: broken" in done.stderr
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        (folder / "service.py").write_text(ECHO)
        # The one that comes in the place of a worker is as those are that run.
        killed = {worker["pid"] for worker in status(folder)["workers"]}
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(ready(folder)) == 2 and not killed & {worker["pid"] for worker in ready(folder)})
        assert {_certificate(server) for _ in range(8)} == {before}
        assert "restarting" in server.stderr(), "warnings are told yet"
        done = command(folder, "reload")
        assert done.returncode == 0, done.stderr
        assert _certificate(server) != before
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        said = len(server.stderr())
        os.kill(ready(folder)[0]["pid"], signal.SIGKILL)
        wait_until(lambda: status(folder)["deaths"].get("signal") == 3)
        assert server.stderr()[said:] == "", "of warnings nothing is told any more"


def _certificate(server: Server, sigalgs: str = "") -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if sigalgs:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(sigalgs)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, context.wrap_socket(sock) as tls:
        return tls.getpeercert(True) or b""


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("RSA", "ECDSA"), ("ECDSA", "RSA")])
def test_a_key_of_another_kind_replaces_the_previous_one(folder: Path, first: str, then: str) -> None:
    """OpenSSL keeps one key of each kind in a context, so a client could still ask for the old certificate."""

    def install(kind: str) -> None:
        leaf = streams.authority()[0].issue_cert("localhost", key_type=trustme.KeyType[kind])
        leaf.private_key_pem.write_to_path(str(folder / "key.pem"))
        leaf.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))

    install(first)
    with serving(folder, "--tls-cert", "cert.pem", "--tls-key", "key.pem", "--tls-watch", "off") as server:
        before = _certificate(server, f"ECDHE-{first}-AES128-GCM-SHA256")
        install(then)
        done = command(folder, "reload")
        assert done.returncode == 0, done.stderr
        assert _certificate(server, f"ECDHE-{then}-AES128-GCM-SHA256") != before
        with pytest.raises(ssl.SSLError):
            _certificate(server, f"ECDHE-{first}-AES128-GCM-SHA256")


def test_workers_added_during_a_reload_run_the_new_code(folder: Path) -> None:
    (folder / "service.py").write_text("import os, time\nwhile os.path.exists('wait'): time.sleep(0.01)\n" + ECHO)
    with serving(folder) as server:
        (folder / "wait").touch()
        reload = Asked(folder, {"command": "reload"})
        wait_until(lambda: "reloading (control socket)" in server.stderr())
        scale = Asked(folder, {"command": "scale", "workers": 4})
        assert scale.reply() == {"ok": True, "workers": 4, "queued": True}
        (folder / "wait").unlink()
        assert reload.reply()["generation"] == 1
        assert {(worker["slot"], worker["generation"]) for worker in ready(folder)} == {(n, 1) for n in range(4)}


def test_a_reload_requested_during_another_is_refused_or_comes_next(folder: Path) -> None:
    """One that is refused is told at once, and the other one is none the worse."""
    (folder / "service.py").write_text("import os, time\nwhile os.path.exists('wait'): time.sleep(0.01)\n" + ECHO)
    config = folder / "prefork.toml"
    config.touch()
    with serving(folder) as server:
        (folder / "wait").touch()
        first = Asked(folder, {"command": "reload"})
        wait_until(lambda: "reloading (control socket)" in server.stderr())
        config.write_text("rubbish")
        reply = answer(asking(folder, {"command": "reload"}))
        assert reply["ok"] is False
        assert "not a TOML file" in reply["error"]
        # It comes when the one before has failed, with what is there by then.
        config.write_text("")
        second = Asked(folder, {"command": "reload"})
        (folder / "service.py").write_text(ECHO)
        (folder / "wait").unlink()
        assert first.reply()["ok"] is True
        assert second.reply()["generation"] == 2


def test_commands_are_refused_until_the_first_workers_are_ready(folder: Path) -> None:
    (folder / "service.py").write_text("import os, time\nwhile os.path.exists('wait'): time.sleep(0.01)\n" + ECHO)
    (folder / "wait").touch()
    with serving(folder, wait_ready=False) as server:
        wait_until(lambda: state(folder) != "")
        for words in (["scale", "3"], ["reload"], ["upgrade"]):
            done = command(folder, *words)
            assert (done.returncode, done.stdout) == (3, ""), done
        (folder / "wait").unlink()
        wait_until(lambda: "ready: 2 workers" in server.stderr())
        assert len(server.worker_pids()) == 2


@pytest.mark.slow
def test_a_crash_loop_after_a_reload_does_not_end_draining_connections(folder: Path) -> None:
    """Their connections are none the worse."""
    with serving(folder, "--drain-timeout", "60", workers=1) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, sock.makefile("rb") as file:
            sock.sendall(b"before\n")
            assert file.readline() == b"before\n"
            code = "import os, threading, time\nthreading.Timer(0.1, os._exit, (1,)).start()\n"
            (folder / "service.py").write_text(code + ECHO)
            assert command(folder, "reload").returncode == 0
            wait_until(lambda: "giving up: every worker keeps dying" in server.stderr(), 30)
            wait_until(lambda: len(server.worker_pids()) == 1, what="only the draining worker")
            sock.sendall(b"after\n")
            assert file.readline() == b"after\n"
        assert server.wait() == 5


def test_a_new_address_that_overlaps_one_of_the_server_is_refused(folder: Path) -> None:
    config = folder / "prefork.toml"
    config.write_text('bind = ["127.0.0.1:0"]\n')
    with serving(folder, "--config", str(config), bind=[]) as server:
        config.write_text(f'bind = [":{server.port}"]\n')
        refused(server, "this server has it for another --bind; remove that one and reload first")


def test_the_file_of_a_socket_gets_its_group(folder: Path) -> None:
    need_root()
    path = folder / "socket"
    with serving(folder, "--group", "65534", bind=[f"unix:{path},mode=660"]):
        assert path.stat().st_gid == 65534
        assert echo(str(path)) == b"hello\n"


def test_a_reload_with_too_many_workers_leaves_no_new_address_open(folder: Path) -> None:
    """It would accept clients that get no answer."""
    config, path = folder / "prefork.toml", folder / "late.sock"
    config.write_text('workers = 1\nbind = ["127.0.0.1:0"]\n')
    with run_server("service:handle", "--config", str(config), cwd=folder, bind=[]) as server:
        config.write_text(f'workers = 1000\nbind = ["127.0.0.1:0", "unix:{path}"]\n')
        refused(server, "workers = 1000: at most")
        assert not path.exists()


def test_after_a_failed_reload_the_previous_limits_are_in_force(folder: Path) -> None:
    config = folder / "prefork.toml"
    config.write_text('bind = ["127.0.0.1:0"]\n')
    with serving(folder, "--config", str(config), bind=[]) as server:
        config.write_text('bind = ["127.0.0.1:0"]\nmax_connections = 1\nat_limit = "refuse"\n')
        (folder / "service.py").write_text("raise SystemExit(1)")
        server.signal(signal.SIGHUP)
        wait_until(lambda: "reload failed" in server.stderr())
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
                sock.sendall(b"hello\n")
                assert sock.recv(100), "a connection beyond the limit of the failed reload"
