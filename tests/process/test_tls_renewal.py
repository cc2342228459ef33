"""Renewed certificates and ticket keys reach workers that run: none is replaced, no connection notices."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import threading
from pathlib import Path

import pytest
from helpers.opened import open_folder
from helpers.renewal import InPlace, Kubernetes, client, connected, issue, serial_of, served, ticket_keys
from helpers.servers import ECHO, exhaust_supervisor, ready, serving, status, upgrade
from helpers.support import need_root, wait_until

from prefork.testing import Server

#: Seconds for a renewal, which takes two on a machine that is not busy.
PATIENCE = 30.0
#: Connections that are asked, so that each of two workers is among them.
ASKED = 12


def prepare(folder: Path, *names: str) -> dict[str, Path]:
    (folder / "service.py").write_text(ECHO)
    return {name: issue(folder / "issued" / name) for name in names}


def all_serve(server: Server, source: Path) -> bool:
    return {served(server.port) for _ in range(ASKED)} == {serial_of(source)}


def echo(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"hello\n")
    assert connection.recv(100) == b"hello\n"


def resumes(server: Server, context: ssl.SSLContext, session: ssl.SSLSession | None) -> bool:
    """Return whether a session is resumed; the handshake has to succeed in any case."""
    with connected(server.port, context, session) as connection:
        echo(connection)
        return bool(connection.session_reused)


def new_session(server: Server, context: ssl.SSLContext) -> ssl.SSLSession:
    with connected(server.port, context) as connection:
        echo(connection)
        assert connection.session is not None
        return connection.session


def test_a_renewal_replaces_no_worker_and_ends_no_connection(tmp_path: Path) -> None:
    """As a Kubernetes volume renews. A worker that hangs gets it as soon as it runs again."""
    issued = prepare(tmp_path, "first", "second")
    files = Kubernetes(tmp_path, issued["first"])
    keys = [os.urandom(80) for _ in range(6)]
    tickets = ticket_keys(tmp_path / "tickets", *keys[:3])
    options = ("--tls-cert", str(files.cert), "--tls-key", str(files.key), "--tls-ticket-key-file", str(tickets))
    context = client()
    with serving(tmp_path, *options) as server, connected(server.port) as open_one:
        echo(open_one)
        workers = ready(tmp_path)
        oldest = new_session(server, context)
        os.kill(workers[0]["pid"], signal.SIGSTOP)
        files.renew(issued["second"])
        ticket_keys(tickets, *keys[1:4])
        wait_until(lambda: status(tmp_path)["certificate_reloads"]["ok"] == 1, PATIENCE)
        os.kill(workers[0]["pid"], signal.SIGCONT)
        wait_until(lambda: all_serve(server, issued["second"]), PATIENCE)
        assert [each["pid"] for each in ready(tmp_path)] == [each["pid"] for each in workers]
        echo(open_one)
        # A ticket of the key before resumes, until its key is gone; then the handshake is a full one.
        assert all(resumes(server, context, oldest) for _ in range(ASKED))
        later = new_session(server, context)
        ticket_keys(tickets, *keys[2:5])
        wait_until(lambda: not any(resumes(server, context, oldest) for _ in range(ASKED)), PATIENCE)
        # The successor of an upgrade reads the same file.
        successor = upgrade(tmp_path)
        wait_until(lambda: status(tmp_path)["pid"] == successor, PATIENCE)
        assert all(resumes(server, context, later) for _ in range(ASKED))
        echo(open_one)
        assert server.stderr().count("TLS renewed without a reload: ") == 2
        os.kill(successor, signal.SIGTERM)


@pytest.mark.slow
def test_a_supervisor_without_descriptors_renews_as_well(tmp_path: Path) -> None:
    issued = prepare(tmp_path, "first", "second")
    files = Kubernetes(tmp_path, issued["first"])
    tls = ("--tls-cert", str(files.cert), "--tls-key", str(files.key))
    with serving(tmp_path, *tls) as server, contextlib.ExitStack() as stack:
        exhaust_supervisor(server, tmp_path, stack)
        files.renew(issued["second"])
        wait_until(lambda: "TLS renewed" in server.stderr(), PATIENCE)
        assert all_serve(server, issued["second"])


@pytest.mark.slow
def test_workers_of_another_user_get_what_they_may_not_read() -> None:
    need_root()
    with open_folder() as folder:
        issued = prepare(folder, "first", "second")
        files = InPlace(folder, issued["first"])
        assert files.key.stat().st_mode & 0o077 == 0
        options = ("--tls-cert", str(files.cert), "--tls-key", str(files.key), "--user", "nobody")
        with serving(folder, *options) as server:
            files.renew(issued["second"])
            wait_until(lambda: all_serve(server, issued["second"]), PATIENCE)
            # By a worker that is forked later, too.
            before = {each["pid"] for each in ready(folder)}
            os.kill(min(before), signal.SIGKILL)
            wait_until(lambda: len({each["pid"] for each in ready(folder)} - before) == 1, PATIENCE)
            assert all_serve(server, issued["second"])
            # Not a file that the user of the workers can change.
            files.renew(issued["first"])
            files.key.chmod(0o666)
            wait_until(lambda: "TLS not renewed" in server.stderr(), PATIENCE)
            assert "any user can write to it, so a worker could become root" in server.stderr()
            assert all_serve(server, issued["second"])


@pytest.mark.slow
@pytest.mark.deadline(3600)
@pytest.mark.parametrize("rounds", [int(os.environ.get("RENEWALS", "10"))])
def test_no_handshake_fails_while_certificates_are_renewed(tmp_path: Path, rounds: int) -> None:
    """RENEWALS in the environment is how many; each takes a second or two."""
    issued = prepare(tmp_path, "first", "second")
    files = Kubernetes(tmp_path, issued["first"])
    options = ("--tls-cert", str(files.cert), "--tls-key", str(files.key))
    failures: list[str] = []
    done, seen = threading.Event(), 0

    def connect() -> None:
        nonlocal seen
        while not done.is_set():
            try:
                served(server.port)
                seen += 1
            except OSError as exc:
                failures.append(repr(exc))

    with serving(tmp_path, *options) as server, connected(server.port) as open_one:
        workers = ready(tmp_path)
        clients = [threading.Thread(target=connect) for _ in range(2)]
        for each in clients:
            each.start()
        try:
            for number in range(rounds):
                source = issued["first" if number % 2 else "second"]
                files.renew(source)
                wait_until(lambda number=number: status(tmp_path)["certificate_reloads"]["ok"] > number, PATIENCE)
                wait_until(lambda source=source: all_serve(server, source), PATIENCE)
                echo(open_one)
        finally:
            done.set()
            for each in clients:
                each.join()
        assert [each["pid"] for each in ready(tmp_path)] == [each["pid"] for each in workers]
    assert not failures
    assert seen > rounds
