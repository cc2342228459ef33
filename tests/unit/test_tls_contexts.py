"""The certificates that a client is offered by the name it asks for, and what connections have in common whatever the
name is: versions, ALPN, certificates of clients, sessions."""

from __future__ import annotations

import base64
import contextlib
import os
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from helpers.certificates import EC, RSA, Certificates, authority, client, contexts, issued, presenting

from prefork.errors import ConfigError
from prefork.net.tls import TLSInfo
from prefork.observe import logs
from prefork.system import tls_contexts
from prefork.system.libssl import UnverifiedPointer
from prefork.system.tls_contexts import TLSContexts
from prefork.system.tls_files import read_files


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


class Handshake:
    """A handshake in memory, with the server's error in `error`, and the client's in `seen`."""

    def __init__(
        self,
        server: TLSContexts,
        client: ssl.SSLContext,
        name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(down, up, server_hostname=name, session=session)
        self.server = server.main.wrap_bio(up, down, server_side=True)
        self.error = self.seen = ""
        for _ in range(3):
            self.seen = self.seen or self._continue(self.client)
            self.error = self.error or self._continue(self.server)
        if not self.error and not self.seen:
            # The tickets of TLS 1.3 arrive with the first data.
            self.server.write(b"hello")
            try:
                assert self.client.read(5) == b"hello"
            except ssl.SSLError as exc:
                self.seen = str(exc)

    def _continue(self, end: ssl.SSLObject) -> str:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            return ""
        except ssl.SSLError as exc:
            return str(exc)
        return ""

    @property
    def offered(self) -> tuple[str, ...]:
        """The names of the certificate that the client was offered."""
        assert not self.error, self.error
        found: Any = self.client.getpeercert()
        return tuple(value for _, value in found["subjectAltName"])


# --- the choice by name -----------------------------------------------------------------------------------------------


def test_the_name_chooses_exactly_then_by_wildcard_then_the_first(certificates: Certificates) -> None:
    files = read_files(
        [certificates.pair("first.test"), certificates.pair("*.a.test"), certificates.pair("x.a.test", "other.test")]
    )
    server = contexts(files)
    expected = {
        "first.test": "first.test",
        "x.a.test": "x.a.test",
        "X.A.TEST": "x.a.test",
        "other.test": "x.a.test",
        "y.a.test": "*.a.test",
        "y.x.a.test": "first.test",
        "a.test": "first.test",
        "unknown.test": "first.test",
        "xn--bcher-kva.a.test": "*.a.test",
        None: "first.test",
    }
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for name, first in expected.items():
            done = Handshake(server, client(version), name)
            assert done.offered[0] == first, (name, version)
            assert getattr(done.server, "sni", "") == name


def test_with_strict_names_an_unknown_or_missing_one_is_a_fatal_alert(certificates: Certificates) -> None:
    server = contexts(read_files([certificates.pair("a.test"), certificates.pair("*.b.test")]), strict_sni=True)
    for name, reason in (("c.test", "no certificate for the name"), (None, "no server name was sent")):
        done = Handshake(server, client(), name)
        assert done.error == reason
        assert "UNRECOGNIZED_NAME" in done.seen
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        asking = client(version)
        known = Handshake(server, asking, "a.test")
        assert known.offered == ("a.test",)
        assert Handshake(server, asking, "x.b.test").offered == ("*.b.test",)
        # Nor does a session of a known name let an unknown one in: with TLS 1.2 the session decides what the name is.
        done = Handshake(server, asking, "c.test", known.client.session)
        resumes = version == ssl.TLSVersion.TLSv1_2
        assert done.error == ("" if resumes else "no certificate for the name")
        assert getattr(done.server, "sni", "") == ("a.test" if resumes else "c.test")


def test_both_types_of_key_are_offered_for_a_name_and_as_the_default(certificates: Certificates) -> None:
    """The second certificate is for one more name, for which there is no RSA."""
    pairs = [certificates.pair("a.test", kind=RSA), certificates.pair("a.test", "b.test", kind=EC)]
    server = contexts(read_files(pairs))
    for ciphers, name, offered in (
        ("ECDHE-RSA-AES128-GCM-SHA256", "a.test", ("a.test",)),
        ("ECDHE-ECDSA-AES128-GCM-SHA256", "a.test", ("a.test", "b.test")),
        ("ECDHE-RSA-AES128-GCM-SHA256", None, ("a.test",)),
        ("ECDHE-ECDSA-AES128-GCM-SHA256", None, ("a.test", "b.test")),
        ("ECDHE-ECDSA-AES128-GCM-SHA256", "b.test", ("a.test", "b.test")),
    ):
        asking = client(ssl.TLSVersion.TLSv1_2)
        asking.set_ciphers(ciphers)
        assert Handshake(server, asking, name).offered == offered, (ciphers, name)
    rsa_only = client(ssl.TLSVersion.TLSv1_2)
    rsa_only.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    assert "NO_SHARED_CIPHER" in Handshake(server, rsa_only, "b.test").error


def test_certificates_that_could_not_be_chosen_are_refused(certificates: Certificates) -> None:
    first, second = certificates.pair("a.test", "b.test"), certificates.pair("B.test")
    with pytest.raises(ConfigError, match=rf"^--tls-cert {second.cert}: is for b\.test, with the same type of key as "):
        read_files([first, second])
    nameless, another = certificates.pair(common="n"), certificates.pair("192.0.2.1")
    with pytest.raises(ConfigError, match=rf"^--tls-cert {nameless.cert}: names no host \(subjectAltName\), so no "):
        read_files([first, nameless])
    with pytest.raises(ConfigError, match=rf"^--tls-cert {nameless.cert}: names no host \(subjectAltName\), so no "):
        read_files([nameless], strict_sni=True)
    with pytest.raises(ConfigError, match=rf"^--tls-cert {another.cert}: names no host, with the same type of key "):
        read_files([nameless, another])
    assert Handshake(contexts(read_files([another])), client(), "a.test").offered == ("192.0.2.1",)


def test_a_failure_of_the_choice_is_a_fatal_alert(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """CVE-2026-27448 of pyOpenSSL: its handshake went on without the callback's decision."""
    reported: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", reported.append)
    server = contexts(read_files([certificates.pair("a.test")]))
    monkeypatch.setattr(server, "_chosen", None)
    done = Handshake(server, client(), "a.test")
    assert done.error
    assert "ALERT" in done.seen.upper()
    assert len(reported) == 1


def test_a_server_name_beyond_ascii_is_a_fatal_alert_and_no_traceback(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Python reports it as an exception that could not be raised, with what the client sent."""
    monkeypatch.setattr("sys.unraisablehook", logs._on_unraisable)
    server = contexts(read_files([certificates.pair("a.test")]))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = client().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="name.test")
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    incoming.write(outgoing.read().replace(b"name.test", b"\xff\x1b[m.test"))
    handshake = server.main.wrap_bio(incoming, outgoing, server_side=True)
    with pytest.raises(ssl.SSLError, match="CALLBACK_FAILED"):
        handshake.do_handshake()
    assert outgoing.read()[:1] == b"\x15"
    assert caplog.records == []


# --- one set of files after the other ---------------------------------------------------------------------------------


def test_a_new_set_serves_new_handshakes_and_leaves_the_rest_alone(certificates: Certificates) -> None:
    server = contexts(read_files([certificates.pair("a.test"), certificates.pair("b.test")]))
    asking = client()
    before = Handshake(server, asking, "a.test")
    # Another type of key, and a name less.
    server.replace(read_files([certificates.pair("a.test", "new.test", kind=RSA)]))
    assert Handshake(server, client(), "a.test").offered == ("a.test", "new.test")
    assert Handshake(server, client(), "b.test").offered == ("a.test", "new.test")
    before.client.write(b"still there")
    assert before.server.read(100) == b"still there"
    resumed = Handshake(server, asking, "a.test", before.client.session)
    assert (resumed.client.session_reused, resumed.error) == (True, "")


def test_the_contexts_of_all_names_are_alike(certificates: Certificates) -> None:
    for policy in ({}, {"profile": "modern", "client": "optional", "alpn": ("h2",), "strict_sni": True}):
        server = contexts(read_files([certificates.pair("a.test"), certificates.pair("b.test")]), **policy)
        for name in ("a.test", "b.test"):
            chosen, main = Handshake(server, client(), name).server.context, server.main
            assert chosen is not main
            for each in ("minimum_version", "maximum_version", "options", "verify_mode", "verify_flags", "num_tickets"):
                assert getattr(chosen, each) == getattr(main, each), each
            assert chosen.get_ciphers() == main.get_ciphers()


# --- profiles ---------------------------------------------------------------------------------------------------------


def test_the_modern_profile_speaks_tls_1_3_only(certificates: Certificates) -> None:
    files = read_files([certificates.pair("a.test")])
    for profile, error in (("modern", "UNSUPPORTED_PROTOCOL"), ("intermediate", "")):
        server = contexts(files, profile=profile)
        assert error in Handshake(server, client(ssl.TLSVersion.TLSv1_2)).error
        assert Handshake(server, client()).error == ""


def test_a_client_that_prefers_chacha20_gets_it_and_others_the_servers_order(
    certificates: Certificates,
) -> None:
    server = contexts(read_files([certificates.pair("a.test")]))
    aes_256, chacha, aes_128 = (
        f"ECDHE-ECDSA-{cipher}" for cipher in ("AES256-GCM-SHA384", "CHACHA20-POLY1305", "AES128-GCM-SHA256")
    )
    for preferred, got in (((aes_256, aes_128), aes_128), ((chacha, aes_128), chacha), ((aes_256, chacha), aes_256)):
        asking = client(ssl.TLSVersion.TLSv1_2)
        asking.set_ciphers(":".join(preferred))
        found = Handshake(server, asking, "a.test").server.cipher()
        assert found is not None
        assert found[0] == got, preferred


# --- ALPN -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.test", "b.test", None])
def test_no_common_protocol_is_a_fatal_alert(certificates: Certificates, name: str | None) -> None:
    """RFC 7301, 3.2; Python's `ssl` goes on without a protocol."""
    files = read_files([certificates.pair("a.test"), certificates.pair("b.test")])
    server = contexts(files, alpn=("h2", "http/1.1"))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        done = Handshake(server, client(version, ["http/1.1", "x", "h2"]), name)
        assert (done.error, done.server.selected_alpn_protocol()) == ("", "h2")
        done = Handshake(server, client(version, ["x", "h"]), name)
        assert "NO_APPLICATION_PROTOCOL" in done.error
        assert "no application protocol" in done.seen
        done = Handshake(server, client(version), name)
        assert (done.error, done.server.selected_alpn_protocol()) == ("", None)


def test_without_a_call_of_openssl_a_protocol_has_to_be_negotiated(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(_: object) -> None:
        raise UnverifiedPointer("no")

    monkeypatch.setattr(tls_contexts, "TLSCalls", unavailable)
    server = contexts(read_files([certificates.pair("a.test")]), alpn=("h2",))
    assert Handshake(server, client(alpn=["h2"]), "a.test").error == ""
    assert Handshake(server, client(alpn=["x"]), "a.test").error == "no application protocol"
    assert Handshake(server, client(), "a.test").error == "no application protocol"


# --- certificates of clients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_has_to_present_a_certificate_of_the_authorities(
    certificates: Certificates, version: ssl.TLSVersion
) -> None:
    pairs = [certificates.pair("a.test"), certificates.pair("b.test")]
    files = read_files(pairs, certificates.authorities("one", "two"))
    for mode in ("required", "optional"):
        server = contexts(files, client=mode)
        for name in ("a.test", "b.test", None):
            for by in ("one", "two"):
                done = Handshake(server, presenting(by, version), name)
                assert (done.error, done.seen) == ("", "")
                assert done.server.getpeercert()
            assert "CERTIFICATE_VERIFY_FAILED" in Handshake(server, presenting("three", version), name).error
            without = Handshake(server, client(version), name)
            assert ("PEER_DID_NOT_RETURN_A_CERTIFICATE" in without.error) == (mode == "required")


def test_an_intermediate_authority_is_trusted_by_itself(certificates: Certificates, tmp_path: Path) -> None:
    parent = trustme.CA(key_type=EC)
    child, sibling = parent.create_child_ca(key_type=EC), parent.create_child_ca(key_type=EC)
    child.cert_pem.write_to_path(tmp_path / "child.pem")
    server = contexts(read_files([certificates.pair("a.test")], str(tmp_path / "child.pem")), client="required")
    for by, error in ((child, ""), (sibling, "CERTIFICATE_VERIFY_FAILED"), (parent, "CERTIFICATE_VERIFY_FAILED")):
        asking = client()
        by.issue_cert("client@example.test", key_type=EC).configure_cert(asking)
        assert error in Handshake(server, asking, "a.test").error
        assert bool(error) or Handshake(server, asking, "a.test").error == ""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_chain_is_told_or_why_it_is_not(certificates: Certificates, version: ssl.TLSVersion) -> None:
    files = read_files([certificates.pair("a.test")], certificates.authorities("one"))
    server, asking = contexts(files, client="optional"), presenting("one", version)
    first = Handshake(server, asking, "a.test")
    info = TLSInfo(first.server)
    own = issued(("client@example.test",), by="one").cert_chain_pems[0].bytes().decode()
    root = authority("one").cert_pem.bytes().decode()
    assert info.verified_chain == tuple(map(ssl.PEM_cert_to_DER_cert, (own, root)))
    assert info.verified_chain_missing == ""
    assert info.peer_certificate is not None
    resumed = TLSInfo(Handshake(server, asking, "a.test", first.client.session).server)
    assert (resumed.resumed, resumed.verified_chain) == (True, None)
    assert resumed.verified_chain_missing == "the session was resumed, which keeps the peer's certificate only"
    assert resumed.peer_certificate == info.peer_certificate
    without = TLSInfo(Handshake(server, client(version), "a.test").server)
    assert (without.verified_chain, without.verified_chain_missing) == (None, "the peer sent no certificate")
    unasked = TLSInfo(Handshake(contexts(read_files([certificates.pair("a.test")])), asking, "a.test").server)
    assert (unasked.verified_chain, unasked.verified_chain_missing) == (None, "no certificate was asked for")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_servers_with_the_same_ticket_keys_share_the_sessions_of_the_same_authorities_only(
    certificates: Certificates, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """A server that asks for no certificate would vouch for its clients at one that does."""
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{base64.b64encode(os.urandom(80)).decode()}\n" for _ in range(3)))
    pair = certificates.pair("a.test")
    asking = presenting("one", version)
    servers = []
    for authorities, mode in (("one", "required"), ("one", "optional"), ("one two", "required"), ("", "off")):
        ca = certificates.authorities(*authorities.split()) if authorities else ""
        servers.append(contexts(read_files([pair], ca, ticket_keys=str(keys)), client=mode, ticket_keys=True))
    another = contexts(
        read_files([pair], certificates.authorities("one"), ticket_keys=str(keys)), client="required", ticket_keys=True
    )
    session = Handshake(another, asking, "a.test").client.session
    handshakes = [Handshake(server, asking, "a.test", session) for server in servers]
    assert [each.error for each in handshakes] == [""] * 4
    assert [each.client.session_reused for each in handshakes] == [True, False, False, False]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_outlives_no_change_of_the_authorities(certificates: Certificates, version: ssl.TLSVersion) -> None:
    """Its client would be let in on the word of an authority that is no longer trusted."""
    pair = certificates.pair("a.test")
    one, two = (read_files([pair], certificates.authorities(name)) for name in ("one", "two"))
    server = contexts(one, client="required")
    asking = presenting("one", version)
    session = Handshake(server, asking, "a.test").client.session
    resumed = Handshake(server, asking, "a.test", session)
    assert resumed.client.session_reused
    assert resumed.server.getpeercert()
    server.replace(two)
    assert "CERTIFICATE_VERIFY_FAILED" in Handshake(server, asking, "a.test", session).error
    server.replace(one)
    assert Handshake(server, asking, "a.test", session).client.session_reused


def test_a_session_ends_with_the_certificate_of_its_client(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TLS 1.3 each resumption brings another ticket, so that a session has no end of its own."""
    server = contexts(read_files([certificates.pair("a.test")], certificates.authorities("one")), client="required")
    asking = presenting("one")
    first = Handshake(server, asking, "a.test")
    session = first.client.session
    end: Any = first.server.getpeercert()
    for later, error in ((-1, ""), (1, "the certificate of the client has expired")):
        now = ssl.cert_time_to_seconds(end["notAfter"]) + later
        monkeypatch.setattr(tls_contexts.time, "time", lambda now=now: now)
        assert Handshake(server, asking, "a.test", session).error == error


def test_without_a_call_of_openssl_the_authorities_stay(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(_: object) -> None:
        raise UnverifiedPointer("no")

    monkeypatch.setattr(tls_contexts, "TLSCalls", unavailable)
    pair = certificates.pair("a.test")
    server = contexts(read_files([pair], certificates.authorities("one")), client="required")
    with pytest.raises(ConfigError, match="^--tls-client-ca: cannot be changed without new workers$"):
        server.replace(read_files([pair], certificates.authorities("two")))
    server.replace(read_files([pair], certificates.authorities("one")))
    assert Handshake(server, presenting("one"), "a.test").error == ""


def test_a_file_without_authorities_is_refused(certificates: Certificates, tmp_path: Path) -> None:
    pair = certificates.pair("a.test")
    path = tmp_path / "ca.pem"
    for content, reason in ((b"text\n", "not PEM certificates"), (b"-----BEGIN CERTIFICATE-----\n!\n", ".* damaged")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"^--tls-client-ca {path}: {reason}$"):
            read_files([pair], str(path))
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with pytest.raises(ConfigError, match=f"^--tls-client-ca {path}: no such file or directory$"):
        read_files([pair], str(path))
