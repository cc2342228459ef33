"""Reload and scale on real processes: nothing is lost, and what does not boot never replaces what runs."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
import trustme
from helpers import streams
from helpers.support import wait_until

from prefork.testing import Server, run_server

SERVICE = """
import os
VERSION = "{version}"
async def handle(stream):
    async for line in stream:
        stream.write(f"{{VERSION}} {{os.getpid()}} ".encode() + line)
"""


def install(folder: Path, version: str) -> None:
    """New code, as a deployment does it: beside, and then over."""
    (folder / "service.new").write_text(SERVICE.format(version=version))
    (folder / "service.new").rename(folder / "service.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    install(tmp_path, "one")
    return tmp_path


def ask(server: Server) -> list[str]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, sock.makefile("rb") as file:
        sock.sendall(b"hello\n")
        return file.readline().decode().split()


def reload(server: Server, outcome: str = "reloaded: ") -> None:
    before = server.stderr().count(outcome)
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.stderr().count(outcome) > before, what=outcome)


def test_a_reload_runs_new_code_in_new_workers(folder: Path) -> None:
    with run_server("service:handle", "-w", "3", cwd=folder) as server:
        old = set(server.worker_pids())
        assert ask(server)[0] == "one"
        install(folder, "two")
        reload(server)
        assert {ask(server)[0] for _ in range(20)} == {"two"}
        wait_until(lambda: not old & set(server.worker_pids()), what="the end of the old workers")
        wait_until(lambda: "every worker before generation 1 has exited" in server.stderr())
        assert len(server.worker_pids()) == 3
        assert server.stop() == 0


def test_open_connections_stay_with_their_worker_until_they_end(folder: Path) -> None:
    with run_server("service:handle", "-w", "2", cwd=folder) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, sock.makefile("rb") as file:
            sock.sendall(b"first\n")
            version, pid, _ = file.readline().decode().split()
            install(folder, "two")
            reload(server)
            sock.sendall(b"second\n")
            assert file.readline().decode().split() == [version, pid, "second"]
            assert int(pid) in server.worker_pids()
        wait_until(lambda: int(pid) not in server.worker_pids(), what="the end of the old worker")


@pytest.mark.parametrize("broken", ["syntax error here", "raise RuntimeError('no database')", "handle = 5"])
def test_code_that_does_not_boot_never_replaces_what_runs(folder: Path, broken: str) -> None:
    with run_server("service:handle", "-w", "2", cwd=folder) as server:
        workers = set(server.worker_pids())
        (folder / "service.py").write_text(broken)
        reload(server, "reload failed, the running workers stay")
        assert set(server.worker_pids()) == workers
        assert {ask(server)[0] for _ in range(10)} == {"one"}
        install(folder, "two")
        reload(server)
        assert {ask(server)[0] for _ in range(10)} == {"two"}


def test_nothing_is_lost_while_it_reloads_again_and_again(folder: Path) -> None:
    with run_server("service:handle", "-w", "2", cwd=folder) as server:
        served = [0] * 4
        lost: list[str] = []
        done = threading.Event()

        def client(number: int) -> None:
            while not done.is_set():
                try:
                    if len(ask(server)) != 3:
                        lost.append("no answer")
                    served[number] += 1
                except OSError as exc:
                    lost.append(repr(exc))

        clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in clients:
            thread.start()
        try:
            for version in range(8):
                install(folder, f"v{version}")
                reload(server)
        finally:
            done.set()
            for thread in clients:
                thread.join()
        assert lost == []
        assert sum(served) > 100
        assert server.stop() == 0


def test_certificates_are_renewed_and_sessions_go_on(folder: Path, certs: dict[str, str]) -> None:
    cert, key = folder / "cert.pem", folder / "key.pem"
    shutil.copy(certs["cert"], cert)
    shutil.copy(certs["key"], key)
    options = ["--tls-cert", str(cert), "--tls-key", str(key), "-w", "2", "--tls-watch", "off"]
    with run_server("service:handle", *options, cwd=folder) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        # TLS 1.2: its session is there when the handshake is.
        context.maximum_version = ssl.TLSVersion.TLSv1_2

        def shake_hands(session: ssl.SSLSession | None = None) -> tuple[bytes, ssl.SSLSession | None, bool]:
            sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            with context.wrap_socket(sock, session=session) as tls:
                return tls.getpeercert(True) or b"", tls.session, bool(tls.session_reused)

        first, session, _ = shake_hands()
        key.write_text("rubbish")
        reload(server, "not reloading (SIGHUP): --tls-key")
        assert shake_hands()[0] == first

        leaf = streams.authority()[0].issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
        leaf.private_key_pem.write_to_path(str(key))
        leaf.cert_chain_pems[0].write_to_path(str(cert))
        reload(server)
        assert shake_hands()[0] != first
        for _ in range(6):
            assert shake_hands(session)[2], "a session from before the reload is resumed after it"


def test_sigttin_and_sigttou_add_and_remove_a_worker(folder: Path) -> None:
    with run_server("service:handle", "-w", "1", cwd=folder) as server:
        for number, count in ((signal.SIGTTIN, 2), (signal.SIGTTIN, 3), (signal.SIGTTOU, 2), (signal.SIGTTOU, 1)):
            server.signal(number)
            wait_until(lambda count=count: len(server.worker_pids()) == count, what=f"{count} workers")
            assert ask(server)[0] == "one"
        server.signal(signal.SIGTTOU)
        wait_until(lambda: server.stderr().count("scaled (SIGTTOU)") == 3)
        assert ask(server)[0] == "one"
        assert re.findall(r"scaled \((\w+)\): (\d)", server.stderr())[:2] == [("SIGTTIN", "2"), ("SIGTTIN", "3")]
        assert server.stop() == 0


@pytest.mark.slow
def test_a_stop_during_a_reload_ends_the_server(folder: Path) -> None:
    for delay in (0.0, 0.01, 0.05, 0.1):
        with run_server("service:handle", "-w", "2", cwd=folder) as server:
            server.signal(signal.SIGHUP)
            time.sleep(delay)
            assert server.stop() == 0
            assert "Traceback" not in server.stderr()


def test_disabled_deadlines_are_logged_once_and_when_they_change(tmp_path: Path) -> None:
    """A peer may be silent for ever by default, which an operator must read in the log."""
    (tmp_path / "service.py").write_text("async def handle(stream): ...\n")
    config = tmp_path / "prefork.toml"

    def told(server: Server) -> list[str]:
        lines = [line for line in server.stderr().splitlines() if "no deadline" in line]
        assert all(" info " in line for line in lines)
        return [line.partition("no deadline for: ")[2] for line in lines]

    def reload(server: Server) -> None:
        before = server.stderr().count("reloaded:")
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.stderr().count("reloaded:") > before)

    config.write_text("")
    with run_server("service:handle", "-w", "1", "--config", str(config), cwd=tmp_path) as server:
        everything = "first byte (--first-byte-timeout), silence (--idle-timeout), age (--max-age)"
        assert told(server) == [everything]
        reload(server)
        assert told(server) == [everything]
        config.write_text("first_byte_timeout = 5\nmax_age = 60\n")
        reload(server)
        wait_until(lambda: told(server) == [everything, "silence (--idle-timeout)"])
        config.write_text("first_byte_timeout = 5\nmax_age = 60\nidle_timeout = 9\n")
        reload(server)
        assert len(told(server)) == 2
