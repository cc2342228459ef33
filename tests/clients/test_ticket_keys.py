"""Ticket keys of a file: openssl resumes on any server that has it, and HAProxy reads the same file."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.renewal import s_client, ticket_keys
from helpers.servers import ECHO, serving
from helpers.support import free_port, need, wait_until

VERSIONS = ("-tls1_2", "-tls1_3")


def outcome(port: int, *options: str) -> str:
    """Return "New" or "Reused" for a handshake by openssl, which has to succeed."""
    said = s_client(port, *options)
    found = re.search(r"^(New|Reused), TLSv1", said, re.MULTILINE)
    assert found is not None, said
    assert "alert" not in said.lower(), said
    return found[1]


def save(port: int, version: str, path: Path) -> str:
    """Begin a session, and write it to a file; return the option that resumes it."""
    path.unlink(missing_ok=True)
    assert outcome(port, version, "-sess_out", str(path), "-ign_eof") == "New"
    assert path.exists()
    return str(path)


@contextlib.contextmanager
def servers(folder: Path, certs: dict[str, str], tickets: Path, number: int) -> Iterator[list[int]]:
    (folder / "service.py").write_text(ECHO.replace("stream.write(line)", "stream.write(line)\n        break"))
    tls = ("--tls-cert", certs["cert"], "--tls-key", certs["key"], "--tls-ticket-key-file", str(tickets))
    with contextlib.ExitStack() as stack:
        started = []
        for each in range(number):
            (folder / f"server{each}").mkdir()
            (folder / f"server{each}" / "service.py").write_text((folder / "service.py").read_text())
            started.append(stack.enter_context(serving(folder / f"server{each}", *tls)))
        yield [server.port for server in started]


@pytest.mark.slow
@pytest.mark.deadline(900)
def test_openssl_resumes_on_every_server_with_the_file(tmp_path: Path, certs: dict[str, str]) -> None:
    """RESUMPTIONS in the environment is how many, 1,000 for the figure of the documentation."""
    need("openssl")
    tickets = ticket_keys(tmp_path / "tickets", *(os.urandom(80) for _ in range(3)))
    number = int(os.environ.get("RESUMPTIONS", "20"))
    with servers(tmp_path, certs, tickets, 2) as (first, second):
        for version in VERSIONS:
            session = save(first, version, tmp_path / "session")
            seen = [outcome((first, second)[each % 2], version, "-sess_in", session) for each in range(number)]
            assert seen == ["Reused"] * number


@contextlib.contextmanager
def haproxy(folder: Path, certs: dict[str, str], tickets: Path) -> Iterator[int]:
    """Run HAProxy with the same certificate and the same file; yield its port."""
    (folder / "both.pem").write_text(Path(certs["cert"]).read_text() + Path(certs["key"]).read_text())
    port = free_port()
    (folder / "haproxy.cfg").write_text(f"""
global
    maxconn 100
defaults
    mode tcp
    timeout client 5s
    timeout connect 5s
    timeout server 5s
listen tls
    bind 127.0.0.1:{port} ssl crt {folder}/both.pem tls-ticket-keys {tickets}
    tcp-request content reject
""")
    process = subprocess.Popen(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: process.poll() is not None or s_client(port).count("BEGIN CERTIFICATE"))
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def ticket(session: Path) -> bytes:
    """Return the ticket in a session file."""
    text = subprocess.run(
        ["openssl", "sess_id", "-in", str(session), "-noout", "-text"], capture_output=True, text=True, check=True
    ).stdout
    lines = text[text.index("TLS session ticket:") :].splitlines()[1:]
    rows = [re.match(r"\s+[0-9a-f]{4} - (.{47})", line) for line in lines]
    return b"".join(bytes.fromhex(row[1].replace("-", " ")) for row in rows if row is not None)


@pytest.mark.slow
@pytest.mark.parametrize("size", [48, 80])
def test_haproxy_encrypts_with_the_same_key_of_the_file(tmp_path: Path, certs: dict[str, str], size: int) -> None:
    """The last but one: name, AES key, MAC key. Sessions of the other are not resumed, and nothing fails: each has a
    session id context of its own."""
    need("openssl", "haproxy")
    keys = [os.urandom(size) for _ in range(4)]
    tickets = ticket_keys(tmp_path / "tickets", *keys)
    half = (size - 16) // 2
    with servers(tmp_path, certs, tickets, 1) as (own,), haproxy(tmp_path, certs, tickets) as other:
        for version in VERSIONS:
            for here, there in ((own, other), (other, own)):
                session = save(here, version, tmp_path / "session")
                found = ticket(tmp_path / "session")
                # name, IV, ciphertext, HMAC-SHA256 (RFC 5077, 4)
                assert found[:16] == keys[-2][:16]
                assert hmac.new(keys[-2][16 + half :], found[:-32], hashlib.sha256).digest() == found[-32:]
                assert outcome(here, version, "-sess_in", session) == "Reused"
                assert outcome(there, version, "-sess_in", session) == "New"
