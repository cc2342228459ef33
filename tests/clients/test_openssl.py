"""openssl's own client: both TLS versions, resumption on whatever worker answers, and ports that were mistaken."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.openssl import exchange
from helpers.support import need, wait_until

from prefork.testing import Server, run_server

SERVICE = """
import os
async def handle(stream):
    async for line in stream:
        tls = stream.tls
        stream.write(f"{os.getpid()} {tls.version} {tls.resumed} {tls.sni} {line.decode()}".encode())
"""


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def server(
    request: pytest.FixtureRequest, certs: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "service.py").write_text(SERVICE)
    options = ["--tls-cert", certs["cert"], "--tls-key", certs["key"], "--loop", request.param, "-w", "3"]
    with run_server("service:handle", *options, cwd=folder) as running:
        yield running


def ask(server: Server, *options: str, ca: str) -> re.Match[str]:
    """What the service says: pid, version, resumed."""
    need("openssl")
    said = exchange(server, "-servername", "localhost", "-CAfile", ca, "-verify_return_error", *options)
    answer = re.match(r"(\d+) (\S+) (\S+) (\S+) hello\n", said)
    assert answer is not None
    return answer


@pytest.mark.parametrize(("option", "version"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
def test_openssl_talks_tls_1_2_and_1_3(server: Server, certs: dict[str, str], option: str, version: str) -> None:
    answer = ask(server, option, ca=certs["ca"])
    assert answer[2] == version
    assert answer[3] == "False"
    assert answer[4] == "localhost"


def test_tls_1_0_and_1_1_are_refused(server: Server) -> None:
    need("openssl")
    for option in ("-tls1", "-tls1_1"):
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", option, "-cipher", "ALL:@SECLEVEL=0"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.returncode != 0
        assert "alert" in done.stderr or "no protocols" in done.stderr or "unsupported" in done.stderr


@pytest.mark.parametrize("option", ["-tls1_2", "-tls1_3"])
def test_a_session_is_resumed_on_every_worker(
    server: Server, certs: dict[str, str], tmp_path: Path, option: str
) -> None:
    """The keys of the tickets were made before the fork."""
    session = str(tmp_path / "session")
    first = ask(server, option, "-sess_out", session, ca=certs["ca"])
    assert first[3] == "False"
    workers: set[str] = set()

    def all_seen() -> bool:
        answer = ask(server, option, "-sess_in", session, ca=certs["ca"])
        assert answer[3] == "True", f"not resumed on worker {answer[1]}, the session is of {first[1]}"
        workers.add(answer[1])
        return len(workers) == 3

    wait_until(all_seen, 40, "answers from three workers")


def test_a_session_survives_the_worker_that_made_it(server: Server, certs: dict[str, str], tmp_path: Path) -> None:
    session = str(tmp_path / "session")
    first = ask(server, "-sess_out", session, ca=certs["ca"])
    subprocess.run(["kill", "-9", first[1]], check=True)
    wait_until(lambda: int(first[1]) not in server.worker_pids() and len(server.worker_pids()) == 3)
    for _ in range(6):
        assert ask(server, "-sess_in", session, ca=certs["ca"])[3] == "True"


def test_plaintext_on_the_tls_port_is_answered_by_an_alert_at_once(server: Server) -> None:
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"\x00" * 50):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(words)
            with sock.makefile("rb") as file:
                assert file.read()[:1] in (b"\x15", b"")
    assert "Traceback" not in server.stderr()
