"""Real balancers in front of a server: HAProxy and nginx send PROXY headers of both versions, with and without TLS."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from helpers.servers import serving, status
from helpers.support import free_port, need, wait_until

from prefork.testing import Server

SERVICE = """
import json

async def handle(stream):
    header, ssl = stream.proxy, stream.proxy.ssl
    facts = {
        "peer": stream.peer,
        "command": f"v{header.version} {header.command}",
        "proxy": stream.get_extra_info("proxy_peer")[0],
        "destination": header.destination and list(header.destination[:2]),
        "crc32c": header.crc32c,
        "unique_id": header.unique_id and header.unique_id.decode(),
        "authority": header.authority and header.authority.decode(),
        "ssl": ssl and [ssl.verified, ssl.version.decode(), ssl.common_name and ssl.common_name.decode()],
        "tls": stream.tls and stream.tls.version,
    }
    await stream.send(json.dumps(facts).encode() + b"\\n")
    async for line in stream:
        await stream.send(line)
"""
HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    default-server check inter 100ms fastinter 100ms
listen v1
    bind 127.0.0.1:{v1}
    server s1 127.0.0.1:{port} send-proxy check-send-proxy
listen v2
    bind 127.0.0.1:{v2}
    unique-id-format "id-of-this-one"
    server s1 127.0.0.1:{port} send-proxy-v2 check-send-proxy proxy-v2-options crc32c,unique-id
listen plain-check
    bind 127.0.0.1:{plain}
    server s1 127.0.0.1:{port} send-proxy-v2
listen tls
    bind 127.0.0.1:{tls} ssl crt {folder}/pair.pem ca-file {folder}/ca.pem verify optional
    server s1 127.0.0.1:{port} send-proxy-v2-ssl-cn check-send-proxy proxy-v2-options authority
"""
NGINX = """
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ }}
stream {{
    server {{ listen 127.0.0.1:{listens}; proxy_pass 127.0.0.1:{port}; proxy_protocol on; }}
}}
"""
BEHIND = ("--proxy-protocol", "any", "--proxy-from", "127.0.0.1")


@contextlib.contextmanager
def running(command: list[str], log: Path, *ports: int) -> Iterator[None]:
    """Run a balancer until the end of the block; it begins when it listens on all ports."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            for port in ports:
                wait_until(lambda port=port: listens(port), what=log.read_text())
            yield
        finally:
            process.terminate()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def facts_through(port: int, context: ssl.SSLContext | None = None) -> dict[str, Any]:
    """Return what the service says of a client at 127.0.0.2, and check that its bytes come back."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(
            socket.create_connection(("127.0.0.1", port), timeout=10, source_address=("127.0.0.2", 0))
        )
        name = sock.getsockname()
        if context is not None:
            sock = stack.enter_context(context.wrap_socket(sock, server_hostname="localhost"))
        with sock.makefile("rwb") as stream:
            stream.write(b"x" * 5000 + b"\n")
            stream.flush()
            facts: dict[str, Any] = json.loads(stream.readline())
            assert stream.readline() == b"x" * 5000 + b"\n"
    assert facts.pop("peer") == f"127.0.0.2:{name[1]}"
    assert facts.pop("proxy") == "127.0.0.1"
    return {key: value for key, value in facts.items() if value}


def closed(folder: Path) -> dict[str, int]:
    return {reason: count for reason, count in status(folder)["totals"]["closed"].items() if count}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


@pytest.fixture
def authority(folder: Path) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(folder / "ca.pem")
    made.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "pair.pem")
    return made


def trusting(authority: trustme.CA, client: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if client:
        authority.issue_cert("client@example.org", common_name=client).configure_cert(context)
    return context


@pytest.mark.slow
def test_haproxy(folder: Path, authority: trustme.CA) -> None:
    need("haproxy")
    with serving(folder, *BEHIND) as server:
        ports = {name: free_port() for name in ("v1", "v2", "plain", "tls")}
        config = folder / "haproxy.cfg"
        config.write_text(HAPROXY.format(port=server.port, folder=folder, **ports))
        with running(["haproxy", "-db", "-f", str(config)], folder / "haproxy.log", *ports.values()):
            v1, v2, tls = ports["v1"], ports["v2"], ports["tls"]
            assert facts_through(v1) == {"command": "v1 PROXY", "destination": ["127.0.0.1", v1]}
            assert facts_through(v2) == {
                "command": "v2 PROXY",
                "destination": ["127.0.0.1", v2],
                "crc32c": True,
                "unique_id": "id-of-this-one",
            }
            told = {"command": "v2 PROXY", "destination": ["127.0.0.1", tls], "authority": "localhost"}
            assert facts_through(tls, trusting(authority)) == told | {"ssl": [False, "TLSv1.3", None]}
            assert facts_through(tls, trusting(authority, "an agent")) == told | {"ssl": [True, "TLSv1.3", "an agent"]}
            # Its checks go on: those with a header are served, those without are no fault.
            served = status(folder)["totals"]["accepted"]
            wait_until(lambda: status(folder)["totals"]["accepted"] > served + 20)
        assert not {"proxy_malformed", "proxy_timeout", "handler_failed", "proxy_untrusted"} & set(closed(folder))
        assert "closed connection" not in server.stderr()
        assert "is DOWN" not in (folder / "haproxy.log").read_text()


@pytest.mark.slow
def test_nginx_in_front_of_tls(folder: Path, authority: trustme.CA) -> None:
    """nginx passes TLS through: the header is in the clear before it."""
    need("nginx")
    pair = str(folder / "pair.pem")
    for options, context in (((), None), (("--tls-cert", pair, "--tls-key", pair), trusting(authority))):
        with serving(folder, *BEHIND, *options) as server:
            check_nginx(folder, server, context)


def check_nginx(folder: Path, server: Server, context: ssl.SSLContext | None) -> None:
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(port=server.port, listens=port, folder=folder))
    with running(["nginx", "-p", str(folder), "-c", str(config)], folder / "nginx.out", port):
        for _ in range(10):
            expected = {"command": "v1 PROXY", "destination": ["127.0.0.1", port]}
            assert facts_through(port, context) == expected | ({} if context is None else {"tls": "TLSv1.3"})
    wait_until(lambda: not status(folder)["totals"]["open"])
    # nginx sends a header for the connection that only looked whether it listens, too.
    assert set(closed(folder)) <= {"done", "handshake_failed", "peer_reset"}
