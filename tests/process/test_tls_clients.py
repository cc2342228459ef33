"""Certificates of clients and ALPN at real workers: what a handler is told, and what a reload changes."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
from pathlib import Path

from helpers.certificates import Certificates, presenting
from helpers.support import need, wait_until

from prefork.testing import Server, run_server

SERVICE = """
async def handle(stream):
    async for line in stream:
        tls = stream.tls
        chain = "none" if tls.verified_chain is None else str(len(tls.verified_chain))
        stream.write(f"{tls.alpn} {tls.resumed} {chain} {tls.verified_chain_missing}\\n".encode())
"""
CONFIG = """
tls_cert = "{cert}"
tls_key = "{key}"
tls_client_ca = "{ca}"
tls_watch = "off"
alpn = "{alpn}"
"""


def ask(
    server: Server, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[str, ssl.SSLSession | None]:
    """Return what the handler says, and the session; "" and None if the client is refused."""
    try:
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock,
            context.wrap_socket(sock, session=session) as tls,
            tls.makefile("r") as answers,
        ):
            tls.sendall(b"hello\n")
            return answers.readline(), tls.session
    except (ssl.SSLError, ConnectionError):
        return "", None


def test_a_reload_with_other_authorities_and_protocols_lets_no_earlier_session_in(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    certificates, config = Certificates(tmp_path), tmp_path / "prefork.toml"
    pair = certificates.pair("a.test")
    # TLS 1.2, because its session is there when the handshake is.
    one, two = (presenting(by, ssl.TLSVersion.TLSv1_2) for by in ("one", "two"))
    for context in (one, two):
        context.set_alpn_protocols(["echo", "h2"])

    def configure(authority: str, protocols: str) -> None:
        ca = certificates.authorities(authority)
        config.write_text(CONFIG.format(cert=pair.cert, key=pair.key, ca=ca, alpn=protocols))

    def named() -> str:
        """Return what openssl says of the authorities that clients are told."""
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_2"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
        return done.stdout.partition("Acceptable client certificate CA names\n")[2].partition("\n")[0]

    need("openssl")
    configure("one", "h2,echo")
    with run_server("service:handle", "-w", "2", "--config", str(config), cwd=tmp_path) as server:
        answer, session = ask(server, one)
        assert answer == "h2 False 2 \n"
        reason = "the session was resumed, which keeps the peer's certificate only"
        assert [ask(server, one, session)[0] for _ in range(4)] == [f"h2 True none {reason}\n"] * 4
        assert ask(server, two) == ("", None)
        assert named().startswith("O = one,")
        configure("two", "echo")
        server.signal(signal.SIGHUP)
        wait_until(lambda: "reloaded: " in server.stderr())
        assert ask(server, one, session) == ("", None)
        assert named().startswith("O = two,")
        assert ask(server, two)[0] == "echo False 2 \n"
