"""openssl's own client at a server with several certificates: names and sessions on any worker, and what TLS has had in
it that must stay off."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.certificates import EC, RSA, Certificates
from helpers.openssl import exchange
from helpers.support import need, rounds

from prefork.testing import Server, run_server

SERVICE = """
import os
async def handle(stream):
    async for line in stream:
        tls = stream.tls
        stream.write(f"{os.getpid()} {tls.resumed} {tls.sni} {line.decode()}".encode())
"""
WORKERS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "service.py").write_text(SERVICE)
    certificates = Certificates(folder)
    options = ["-w", str(WORKERS)]
    for names, kind in ((("a.test",), EC), (("*.b.test",), EC), (("c.test",), RSA)):
        pair = certificates.pair(*names, kind=kind)
        options += ["--tls-cert", str(pair.cert), "--tls-key", str(pair.key)]
    with run_server("service:handle", *options, cwd=folder) as running:
        yield running


def s_client(server: Server, text: str, *options: str) -> str:
    """Return everything that openssl says when `text` is typed."""
    need("openssl")
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", *options]
    done = subprocess.run(
        command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30, check=False
    )
    return done.stdout


def ask(server: Server, name: str, *options: str) -> tuple[str, bool]:
    """Return the pid of the worker that answered, and whether it resumed a session."""
    answer = re.fullmatch(r"(\d+) (\w+) (\S+) hello\n", exchange(server, "-servername", name, *options))
    assert answer is not None
    assert answer[3] == name
    return answer[1], answer[2] == "True"


@pytest.mark.deadline(900)
@rounds(3, 1000)
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_sessions_of_every_name_resume_on_any_worker(server: Server, tmp_path: Path, rounds: int, version: str) -> None:
    """Tickets are those of the context that connections begin with, whatever certificate is chosen."""
    need("openssl")
    workers, resumed = set(), 0
    names = ["a.test", "x.b.test", "c.test"]
    for name in names:
        ask(server, name, version, "-sess_out", str(tmp_path / name))
    for turn in range(rounds):
        name = names[turn % len(names)]
        pid, was_resumed = ask(server, name, version, "-sess_in", str(tmp_path / name))
        workers.add(pid)
        resumed += was_resumed
    assert resumed == rounds
    assert rounds < 100 or len(workers) == WORKERS


@pytest.mark.slow
def test_openssl_sees_the_certificate_of_the_name(server: Server) -> None:
    for name, expected in (("x.b.test", "*.b.test"), ("c.test", "c.test"), ("unknown.test", "a.test")):
        pem = re.search(r"-----BEGIN.*?END CERTIFICATE-----", s_client(server, "", "-servername", name), re.S)
        assert pem is not None
        text = subprocess.run(
            ["openssl", "x509", "-noout", "-ext", "subjectAltName"], input=pem[0], capture_output=True, text=True
        ).stdout
        assert f"DNS:{expected}" in text


def test_renegotiation_compression_and_early_data_are_off(server: Server, tmp_path: Path) -> None:
    """RFC 9325, 3.3 and 3.5; RFC 8446, 8."""
    out = s_client(server, "R\n", "-tls1_2", "-servername", "a.test")
    assert "Secure Renegotiation IS supported" in out
    assert re.search("no renegotiation", out)
    assert "Compression: NONE" in out
    session, early = tmp_path / "session", tmp_path / "early"
    early.write_text("hello\n")
    ask(server, "a.test", "-tls1_3", "-sess_out", str(session))
    out = s_client(server, "", "-tls1_3", "-servername", "a.test", "-sess_in", str(session), "-early_data", str(early))
    assert "Early data was accepted" not in out
    assert re.search("Early data was (not sent|rejected)", out) or "Max Early Data: 0" in session_text(session)


def session_text(session: Path) -> str:
    command = ["openssl", "sess_id", "-in", str(session), "-noout", "-text"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout


def test_keys_are_updated_in_mid_stream(server: Server) -> None:
    """RFC 8446, 4.6.3: `k` updates the client's keys, `K` asks for the server's as well."""
    need("openssl")
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_3", "-servername", "a.test"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for typed in ("hello", "k", "hello", "K", "hello", "K", "hello"):
            process.stdin.write(f"{typed}\n")
            process.stdin.flush()
            answer = " hello" if typed == "hello" else "KEYUPDATE"
            assert any(answer in line for line in process.stdout), typed
        process.kill()
