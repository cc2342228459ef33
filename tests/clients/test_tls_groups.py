"""Key exchange groups: only those that are cheap for the server (CVE-2022-40735)."""

from __future__ import annotations

import asyncio
import re
import ssl
from pathlib import Path

import pytest
from helpers.streams import server_context
from helpers.support import need

import prefork
from prefork.config import TLS
from prefork.events import Event, GroupsReduced
from prefork.net.server import TCPServer
from prefork.system import libssl, tls_contexts
from prefork.system.libssl import UnverifiedPointer
from prefork.system.tls_groups import by_pointer, limit_groups
from prefork.testing import run_server

#: The names under which openssl reports the negotiated group.
CHEAP = {"X25519": "X25519", "P-256": "(prime256v1|P-256)", "P-384": "(secp384r1|P-384)"}
DEAR = ("ffdhe2048", "ffdhe8192", "P-521", "X448")


async def s_client(port: int, *options: str) -> tuple[bool, str]:
    """Return whether the handshake was completed, and the output of openssl."""
    process = await asyncio.create_subprocess_exec(
        *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-msg", *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode == 0, out.decode("ascii", "replace")


def ask(tls: TLS | ssl.SSLContext, *options: str) -> tuple[bool, str]:
    """Connect with openssl s_client to a server in this process; return what `s_client` does."""
    need("openssl")

    async def handle(stream: prefork.Stream) -> None:
        await stream.read()

    async def main() -> tuple[bool, str]:
        async with TCPServer(handle, tls=tls) as server:
            server.listen(0, "127.0.0.1")
            return await s_client(server.sockets[0].getsockname()[1], *options)

    return asyncio.run(main())


@pytest.mark.parametrize("group", DEAR)
def test_a_client_without_any_of_the_groups_is_rejected(certs: dict[str, str], group: str) -> None:
    done, out = ask(TLS(certs["cert"], certs["key"]), "-tls1_3", "-groups", group)
    assert not done
    assert "handshake failure" in out


@pytest.mark.parametrize("group", CHEAP)
def test_the_cheap_groups_need_no_second_hello(certs: dict[str, str], group: str) -> None:
    done, out = ask(TLS(certs["cert"], certs["key"]), "-tls1_3", "-groups", f"{group}:ffdhe8192:P-521")
    assert done, out
    assert re.search(rf"Server Temp Key: .*{CHEAP[group]}", out), out
    assert len(re.findall(r">>> .*ClientHello", out)) == 1, out


def test_an_expensive_group_is_not_chosen_even_if_the_client_prefers_it(certs: dict[str, str]) -> None:
    done, out = ask(TLS(certs["cert"], certs["key"]), "-tls1_3", "-groups", "ffdhe8192:P-521:X448:P-384")
    assert done, out
    assert re.search(rf"Server Temp Key: .*{CHEAP['P-384']}", out), out


def test_the_workers_of_the_command_offer_the_groups(certs: dict[str, str], tmp_path: Path) -> None:
    need("openssl")
    (tmp_path / "service.py").write_text("async def handle(stream): await stream.read()\n")
    options = ["--tls-cert", certs["cert"], "--tls-key", certs["key"], "-w", "1"]
    with run_server("service:handle", *options, cwd=tmp_path) as server:
        assert not asyncio.run(s_client(server.port, "-tls1_3", "-groups", "ffdhe8192"))[0]
        assert asyncio.run(s_client(server.port, "-tls1_3", "-groups", "X25519"))[0]


def test_a_context_of_the_caller_is_not_changed() -> None:
    assert ask(server_context(), "-tls1_3", "-groups", "P-521")[0]


# --- if the list cannot be set ----------------------------------------------------------------------------------------


def handshake(server: ssl.SSLContext, group: str) -> bool:
    """Return whether a handshake works with a client that offers only this group."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_ecdh_curve(group)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    for _ in range(3):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return True


def test_the_list_can_be_set(certs: dict[str, str]) -> None:
    """On every supported Python; and what the check sets is reset."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs["cert"], certs["key"])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    before = context.minimum_version, context.maximum_version, context.options
    assert limit_groups(context) is None
    assert (context.minimum_version, context.maximum_version, context.options) == before
    assert [handshake(context, group) for group in ("X25519", "prime256v1", "secp384r1")] == [True] * 3
    assert not handshake(context, "secp521r1")


@pytest.mark.parametrize("failure", [UnverifiedPointer("no"), OSError("no"), ValueError("no"), ssl.SSLError("no")])
def test_otherwise_only_p_256_is_offered(certs: dict[str, str], failure: Exception) -> None:
    def call(_: ssl.SSLContext) -> None:
        raise failure

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs["cert"], certs["key"])
    assert "no" in str(limit_groups(context, call))
    assert handshake(context, "prime256v1")
    assert not any(handshake(context, group) for group in ("secp384r1", "secp521r1", "X448"))


def test_an_unverified_pointer_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of the check rejects by itself."""
    context, other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    openssl = libssl.OpenSSL()
    with pytest.raises(UnverifiedPointer, match="not an SSL_CTX"):
        # A valid pointer, but that of another context.
        libssl.verify_pointer(context, libssl.find_pointer(other, openssl), openssl)
    for stored in (0, 8, 3, 1 << 46):
        monkeypatch.setattr(libssl.OpenSSL, "read_pointer", lambda _self, _address, stored=stored: stored)
        with pytest.raises((UnverifiedPointer, OSError)):
            by_pointer(context)
    monkeypatch.undo()
    monkeypatch.setattr(ssl, "OPENSSL_VERSION_NUMBER", 1)
    with pytest.raises(UnverifiedPointer, match="the libssl that was found"):
        by_pointer(context)
    monkeypatch.undo()
    monkeypatch.setattr(libssl, "_KNOWN", ((2, 0), (2, 7)))
    with pytest.raises(UnverifiedPointer, match="layout"):
        by_pointer(context)


def test_a_context_that_had_to_fall_back_says_so_at_debug_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libssl, "_KNOWN", ((2, 0), (2, 7)))
    if not hasattr(ssl.SSLContext, "set_groups"):
        events: list[Event] = []
        tls_contexts.TLSContexts(tls_contexts.TLSPolicy(), events.append)
        assert [type(event) for event in events] == [GroupsReduced]
        assert events[0].level == 10
        assert "only the group P-256" in str(events[0])
