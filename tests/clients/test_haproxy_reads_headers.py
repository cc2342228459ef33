"""HAProxy, which reads PROXY headers with code of its own, reads what `prefork.proxy_header` writes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.support import free_port, need, wait_until

from prefork import proxy_header

CONFIG = """
global
    log {folder}/nothing local0
defaults
    mode http
    timeout client 10s
frontend told
    bind 127.0.0.1:{port} accept-proxy
    http-request return status 200 content-type text/plain lf-string "{facts}"
"""
FACTS = "%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_authority] %[fc_pp_unique_id]"
V4 = (("203.0.113.7", 51234), ("192.0.2.1", 443))
V6 = (("2001:db8::7", 51234, 0, 0), ("2001:db8::1", 443, 0, 0))
NAMES = [(2, b"example.org"), (5, b"request-7")]


@contextlib.contextmanager
def haproxy(folder: Path) -> Iterator[int]:
    """Run a HAProxy that answers with what a header has told it; yield its port."""
    need("haproxy")
    port = free_port()
    file = folder / "haproxy.cfg"
    file.write_text(CONFIG.format(folder=folder, port=port, facts=FACTS))
    process = subprocess.Popen(["haproxy", "-db", "-f", str(file)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port))
        yield port
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def told(port: int, header: bytes) -> list[str]:
    """Send a header and a request; return what HAProxy says of them, or nothing if it has closed the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(header + b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(4096):
                answer += data
    return answer.partition(b"\r\n\r\n")[2].decode().split()


@pytest.mark.slow
def test_haproxy_reads_both_versions_and_verifies_the_checksum(tmp_path: Path) -> None:
    with haproxy(tmp_path) as port:
        for ends, expected in ((V4, "203.0.113.7 51234 192.0.2.1 443"), (V6, "2001:db8::7 51234 2001:db8::1 443")):
            pair: Any = ends
            assert told(port, proxy_header(pair, version=1)) == expected.split()
            assert told(port, proxy_header(pair)) == expected.split()
            header = proxy_header(pair, tlvs=NAMES, crc32c=True)
            assert told(port, header) == [*expected.split(), "example.org", "request-7"]
            assert told(port, header[:-1] + bytes([header[-1] ^ 1])) == []
        assert told(port, proxy_header((V4[0], V6[1]), version=1))[:3] == ["::ffff:203.0.113.7", "51234", "2001:db8::1"]
        # What it takes for the real addresses.
        for own in (proxy_header(None), proxy_header(None, crc32c=True), proxy_header(None, version=1)):
            assert told(port, own)[::2][:2] == ["127.0.0.1", "127.0.0.1"]
