"""Own the TLS contexts of one server: one that every connection begins with, and one for each choice of certificates.

They are made once, in the process that forks the workers. Session-ticket keys live in the context, so workers resume
each other's sessions only if they inherit the same one. No file is read here, and no connection appears.

A connection keeps from the first context its versions, groups, options, tickets, and whether a client's certificate is
verified. After the choice by name, it takes certificates, ciphers, ALPN and authorities from the chosen one
(SSL_set_SSL_CTX). All of them are therefore set up alike, by `_configured`, and none is ever changed under a handshake:
`replace` makes new ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..config import TLS
from ..core.server_names import NameTable
from ..errors import ConfigError
from ..events import Emit, GroupsReduced, log
from .ticket_keys import TicketKeyring
from .tls_calls import TLSCalls
from .tls_files import TLSFiles, as_file, load_client_ca, load_pair, read_files
from .tls_groups import limit_groups

#: Mozilla's "intermediate" profile for TLS 1.2 (Server Side TLS 5.8): forward secrecy, authenticated encryption.
INTERMEDIATE_CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
#: Authorities that are named to clients. More would make each handshake long, and far more are not possible in one.
_MAX_NAMED = 100
#: openssl/ssl.h, SSL_OP_PRIORITIZE_CHACHA
_PRIORITIZE_CHACHA = 1 << 21


@dataclass(frozen=True, slots=True)
class TLSPolicy:
    """What connections of a server begin with, whatever name they ask for."""

    profile: Literal["modern", "intermediate"] = "intermediate"
    alpn: tuple[str, ...] = ()
    client: Literal["off", "required", "optional"] = "off"
    """Whether clients are asked for a certificate, and may do without."""
    strict_sni: bool = False
    """Reject clients that name no server, or one that no certificate is for."""
    ticket_keys: bool = False
    """Encrypt session tickets with keys from a file, and not with those that OpenSSL makes."""


_VERIFY_MODES = {"off": ssl.CERT_NONE, "required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL}


class ServerSSLObject(ssl.SSLObject):
    """An SSLObject with the server name that its peer sent (SNI, RFC 6066), which `ssl` passes only to a callback."""

    sni: str | None = None
    refusal: str = ""
    """Why its handshake is rejected, which OpenSSL does not know; "" if it is not."""
    verifies_client: bool = False

    def do_handshake(self) -> None:
        """Continue the handshake. Raises ssl.SSLError, with the server's own reason if it has one."""
        try:
            super().do_handshake()
        except ssl.SSLError as exc:
            if self.refusal:
                raise _error(self.refusal) from exc
            raise
        if self.verifies_client and self.session_reused:
            self._check_expiry()

    def _check_expiry(self) -> None:
        """Raise ssl.SSLError if the client's certificate has expired since its session began.

        OpenSSL does not look at it again. With TLS 1.3 each resumption brings another ticket, so the session could go
        on for ever.
        """
        end: Any = (self.getpeercert() or {}).get("notAfter")
        if end is not None and time.time() > ssl.cert_time_to_seconds(end):
            raise _error("the certificate of the client has expired")


class _ALPNCheckingSSLObject(ServerSSLObject):
    """A ServerSSLObject that itself sees to it that a protocol was negotiated, because OpenSSL was not told to."""

    def do_handshake(self) -> None:
        super().do_handshake()
        if self.selected_alpn_protocol() is None:
            raise _error("no application protocol")


def _error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(ssl.SSLErrorNumber.SSL_ERROR_SSL, reason)
    # Only errors that `_ssl` raises have these from the start.
    error.library, error.reason = "prefork", reason
    return error


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The contexts of one set of files: swapped as a whole."""

    by_name: NameTable[ssl.SSLContext]
    default: ssl.SSLContext


class TLSContexts:
    """Owns the contexts of one server, by `policy`. `replace` has to be called before the first handshake."""

    def __init__(self, policy: TLSPolicy, emit: Emit = log) -> None:
        self.policy = policy
        self.files: TLSFiles | None = None
        """What handshakes use that begin now."""
        self.session_group = b""
        """What sessions have to have in common to be resumed: how, and by which authorities, their clients were
        verified; b"" if they were not. Keys of tickets that servers share have to be derived from it, otherwise a
        server would let a client in that only another one has verified. Not OpenSSL's session id context: `ssl` sets
        it for each connection."""
        self.main, reason = _configured(policy)
        """The context that connections begin with: always the same one, because the ticket keys are in it."""
        if reason:
            emit(GroupsReduced(reason))
        self._calls: TLSCalls | None = None
        self._main_pointer = 0
        self._ticket_keys = b""
        with contextlib.suppress(OSError):
            calls = TLSCalls(policy.alpn)
            self._main_pointer = calls.pointer(self.main)
            self._ticket_keys = calls.ticket_keys(self._main_pointer)
            self._calls = calls
        alpn_unchecked = bool(policy.alpn) and self._calls is None
        self.main.sslobject_class = _ALPNCheckingSSLObject if alpn_unchecked else ServerSSLObject
        self.main.sni_callback = self._choose
        self._keyring = TicketKeyring() if policy.ticket_keys else None
        if self._keyring is not None:
            self._keyring.install(self.main)
        self._chosen: _Chosen | None = None
        self._made: dict[tuple[object, ...], ssl.SSLContext] = {}
        """The contexts in use, by everything that was loaded into them."""

    @property
    def changes_ticket_keys(self) -> bool:
        """Whether tickets have keys that a seed changes (`TLSFiles.ticket_seed`), and not those of a file."""
        return self._calls is not None and self._keyring is None

    def can_take(self, files: TLSFiles) -> bool:
        """Return whether `replace` can use other files: not other authorities, if no session could be forgotten."""
        return self.files is None or self._calls is not None or self.files.same_authorities(files)

    def replace(self, files: TLSFiles) -> None:
        """Use other files for handshakes that begin from now on. Raises ConfigError or OSError, with nothing changed.

        Connections that are open are untouched. So are sessions, because the keys of the tickets stay if they are in no
        file, unless the authorities for the certificates of clients are others.
        """
        if not self.can_take(files):
            # The sessions of clients that were verified by the old ones could be resumed.
            raise ConfigError("--tls-client-ca: cannot be changed without new workers", option="--tls-client-ca")
        choice = files.choice(self.policy.strict_sni)
        # One is made for what has changed only: it takes 1.4 ms of a worker's loop, and there may be a thousand.
        groups = {each: files.content(each) for each in {*choice.by_name.values(), choice.default}}
        made = {content: self._made.get(content) or self._make(files, each) for each, content in groups.items()}
        contexts = {each: made[content] for each, content in groups.items()}
        by_name = NameTable({name: contexts[group] for name, group in choice.by_name.items()})
        group = self._session_group(files)
        seed = files.ticket_seed or self._ticket_keys
        if self._calls is not None and (group, seed) != (self.session_group, self._ticket_keys):
            self._calls.separate_sessions(self._main_pointer, seed, group)
            self._ticket_keys = seed
        self._chosen = _Chosen(by_name, contexts[choice.default])
        if self._keyring is not None and files.ticket_keys is not None:
            self._keyring.replace(files.ticket_keys.keys.derive(group))
        self.files, self.session_group, self._made = files, group, made

    def _make(self, files: TLSFiles, positions: Sequence[int]) -> ssl.SSLContext:
        """Return a context with a certificate for each type of key."""
        context, _ = _configured(self.policy)
        for position in positions:
            load_pair(context, files.pairs[position])
        if files.client_ca is not None:
            load_client_ca(context, files.client_ca)
            if self._calls is not None and files.client_ca.count() <= _MAX_NAMED:
                with as_file(files.client_ca.data) as path:
                    self._calls.name_authorities(self._calls.pointer(context), path)
        if self.policy.alpn and self._calls is not None:
            self._calls.select_protocols(self._calls.pointer(context))
        elif self.policy.alpn:
            context.set_alpn_protocols(self.policy.alpn)
        return context

    def _session_group(self, files: TLSFiles) -> bytes:
        if files.client_ca is None:
            return b""
        return hashlib.sha256(self.policy.client.encode() + files.client_ca.digest()).digest()

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        """Choose the certificates for a handshake: an `SSLContext.sni_callback`, called also if there is no name.

        What it raises is a fatal alert: Python's `ssl` fails the handshake.
        """
        if isinstance(connection, ServerSSLObject):
            connection.sni = name
            connection.verifies_client = self.policy.client != "off"
        assert self._chosen is not None
        found = None if name is None else self._chosen.by_name.find(name)
        if found is None:
            if self.policy.strict_sni:
                if isinstance(connection, ServerSSLObject):
                    connection.refusal = "no server name was sent" if name is None else "no certificate for the name"
                return ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
            found = self._chosen.default
        connection.context = found
        return None


def build_contexts(certificates: Sequence[TLS], emit: Emit = log) -> TLSContexts:
    """Return the contexts of a server with these certificates and no other options. Raises ConfigError.

    TLS 1.2 and 1.3, no renegotiation, no compression.
    """
    contexts = TLSContexts(TLSPolicy(), emit)
    contexts.replace(read_files(certificates))
    return contexts


def _configured(policy: TLSPolicy) -> tuple[ssl.SSLContext, str | None]:
    """Return a context by `policy`, without certificates, and why it has no full list of groups, if so."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    modern = policy.profile == "modern"
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if modern else ssl.TLSVersion.TLSv1_2
    context.set_ciphers(INTERMEDIATE_CIPHERS)
    # The guideline leaves the order to the client, because its processor may be slow at AES. Such a client names
    # ChaCha20 first, and gets it. The server's own order for the others is what testssl.sh asks for.
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | _PRIORITIZE_CHACHA
    # A renegotiation costs the server far more than the client that requests it (RFC 9325, 3.5).
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # OpenSSL sends two session tickets, for clients that open several connections at once (RFC 8446, C.4). One is
    # enough, because each resumed connection brings the next. A second one would cost every handshake 5 % more.
    context.num_tickets = 1
    context.verify_mode = _VERIFY_MODES[policy.client]
    # An intermediate authority in the file is trusted without the root that has signed it, and others.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context, limit_groups(context)
