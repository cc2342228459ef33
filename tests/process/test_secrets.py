"""No key material leaves a server: neither in what it tells, nor in what other processes of its user can read."""

from __future__ import annotations

import base64
import os
import socket
import ssl
from pathlib import Path

import pytest
from helpers.proc import children
from helpers.renewal import ticket_keys
from helpers.servers import command, serving
from helpers.streams import authority, client_context
from helpers.support import wait_until

SERVICE = """
import time

async def handle(stream):
    async for line in stream:
        if line == b"hang\\n":
            time.sleep(60)
        stream.write(line)
"""


def connect(port: int) -> ssl.SSLSocket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    return client_context().wrap_socket(sock, server_hostname="localhost")


def processes(pid: int) -> list[int]:
    """Return the pid and those of its children, the process of --metrics among them."""
    return [pid, *children(pid)]


@pytest.mark.slow
def test_no_key_material_is_told_or_left_where_others_read(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    leaf = authority()[1]
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    leaf.cert_chain_pems[0].write_to_path(str(cert))
    leaf.private_key_pem.write_to_path(str(key))
    raw = [os.urandom(80) for _ in range(3)]
    tickets = ticket_keys(tmp_path / "tickets", *raw)
    secrets = [line for line in key.read_text().splitlines() if "-----" not in line]
    secrets += [text for each in raw for text in (base64.b64encode(each).decode(), each[16:].hex())]
    assert len(secrets) > 7
    options = ("--tls-cert", str(cert), "--tls-key", str(key), "--hang-timeout", "1", "--log-level", "debug")
    options += ("--tls-ticket-key-file", str(tickets))
    seen = ""
    with serving(tmp_path, *options, "--access-log", "log", "--metrics", f"unix:{tmp_path}/metrics") as server:
        with connect(server.port) as one:
            one.sendall(b"hello\n")
            assert one.recv(100) == b"hello\n"
            for words in (("status", "--json"), ("connections", "--json"), ("stacks", "--json")):
                seen += command(tmp_path, *words).stdout
        ticket_keys(tickets, *raw[1:], os.urandom(80))
        wait_until(lambda: "TLS renewed" in server.stderr())
        for pid in processes(server.pid):
            for name in ("environ", "cmdline"):
                seen += Path(f"/proc/{pid}/{name}").read_text()
        # The stacks of a hung worker.
        with connect(server.port) as one:
            one.sendall(b"hang\n")
            wait_until(lambda: "stacks of worker" in server.stderr(), 20)
        assert server.stop() == 0
        seen += server.stderr() + (tmp_path / "log").read_text()
    assert "stacks of worker" in seen
    assert str(cert) in seen, "what is public is told"
    assert not [line for line in secrets if line in seen]
