"""Transform the bytes of one TLS connection: received bytes go in, plain bytes come out, and the other way round.

No sockets, waiting or deadlines; see `receiving.py` and `stream.py`. Contexts are made before the fork, in
`system/tls_contexts.py`, because the session-ticket keys live in them.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

from ..system.tls_contexts import ServerSSLObject
from .cpython import raw_ssl_object, verified_chain

#: The most that one read of an SSLObject returns: a record (RFC 8446, 5.1).
RECORD = 16 * 1024


def remember_sni(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
    """Store the peer's server name: an `SSLContext.sni_callback`."""
    if isinstance(connection, ServerSSLObject):
        connection.sni = name


def prepare_context(context: ssl.SSLContext) -> None:
    """Make `context` record its peers' server names, unless its owner has set a class or a callback."""
    if context.sslobject_class is ssl.SSLObject:
        context.sslobject_class = ServerSSLObject
    if context.sni_callback is None:
        context.sni_callback = remember_sni


class TLSInfo:
    """The facts of a connection's TLS, `stream.tls`. Complete when the handler runs."""

    __slots__ = ("_object", "truncated")

    def __init__(self, connection: ssl.SSLObject) -> None:
        self._object = connection
        self.truncated = False
        """The peer ended without a close_notify: an attacker may have cut off what it sent."""

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """The `ssl.SSLObject` itself, for facts that are not offered here."""
        return self._object

    @property
    def version(self) -> str:
        """The protocol version: `"TLSv1.3"` or `"TLSv1.2"`."""
        return self._object.version() or ""

    @property
    def cipher(self) -> tuple[str, str, int]:
        """The cipher's name, the protocol that defines it, and its secret bits."""
        return self._object.cipher() or ("", "", 0)

    @property
    def alpn(self) -> str | None:
        """The application protocol that was negotiated (RFC 7301), or None."""
        return self._object.selected_alpn_protocol()

    @property
    def sni(self) -> str | None:
        """The server name that the peer sent, or None. The peer chose it: do not trust it, nor log it unescaped."""
        return getattr(self._object, "sni", None)

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The certificate as `ssl.SSLSocket.getpeercert()` returns it; None if none was requested or sent.

        Also after a resumption: the session has it.
        """
        return self._object.getpeercert() or None

    @property
    def verified_chain(self) -> tuple[bytes, ...] | None:
        """The chain from the peer's certificate to an authority, each certificate in DER; None if there is none to tell
        of, for which `verified_chain_missing` has the reason."""
        if self._object.context.verify_mode is ssl.CERT_NONE:
            # OpenSSL also keeps a chain that it could not verify.
            return None
        try:
            return verified_chain(self._object)
        except AttributeError:
            return None

    @property
    def verified_chain_missing(self) -> str:
        """Why `verified_chain` is None, in words; "" if it is not."""
        if self.verified_chain is not None:
            return ""
        if self._object.context.verify_mode is ssl.CERT_NONE:
            return "no certificate was asked for"
        if self.peer_certificate is None:
            return "the peer sent no certificate"
        return (
            "the session was resumed, which keeps the peer's certificate only"
            if self.resumed
            else "this Python cannot tell"
        )

    @property
    def resumed(self) -> bool:
        """Whether the handshake resumed an earlier session."""
        return bool(self._object.session_reused)

    def __repr__(self) -> str:
        return f"<TLSInfo {self.version} {self.cipher[0]}{' truncated' if self.truncated else ''}>"


class TLSEngine:
    """One TLS connection over two memory BIOs: one recv feeds many records, and one send carries many.

    The server's side; with `server_hostname` the client's. Each method may raise `ssl.SSLError`; after that
    `pending_output()` may return an alert for the peer.
    """

    __slots__ = (
        "_object",
        "incoming",
        "info",
        "is_client",
        "outgoing",
        "raw",
        "received_close_notify",
        "sent_close_notify",
        "shutdown_timeout",
    )

    def __init__(self, context: ssl.SSLContext, shutdown_timeout: float, server_hostname: str | None) -> None:
        self.is_client = server_hostname is not None
        self.incoming = ssl.MemoryBIO()
        """Bytes received."""
        self.outgoing = ssl.MemoryBIO()
        """Bytes to send; `outgoing.pending` is their number."""
        self._object = context.wrap_bio(
            self.incoming, self.outgoing, server_side=not self.is_client, server_hostname=server_hostname
        )
        self.raw = raw_ssl_object(self._object)
        """What reads and writes records."""
        self.info = TLSInfo(self._object)
        self.received_close_notify = False
        self.sent_close_notify = False
        self.shutdown_timeout = shutdown_timeout
        """Seconds to wait for the peer's close_notify after ours."""

    def handshake(self, received: bytes) -> bool:
        """Continue the handshake and return whether it is complete. Send `pending_output()` either way."""
        self.incoming.write(received)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def decrypt(self, received: bytes) -> bytes:
        """Return the plain bytes of `received` and of what is left from before; b"" if no record is complete.

        Asks how much is pending before it reads, because raising and catching SSLWantReadError after each record costs
        more than decrypting it. It is still raised once if a record is cut at the end of `received`.
        """
        incoming, raw = self.incoming, self.raw
        incoming.write(received)
        plain: list[bytes] = []
        try:
            while incoming.pending or raw.pending():
                data = raw.read(RECORD)
                if not data:
                    self.received_close_notify = True
                    break
                plain.append(data)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            # A close_notify is the regular end and no error.
            self.received_close_notify = True
        return plain[0] if len(plain) == 1 else b"".join(plain)

    def encrypt(self, plain: bytes | memoryview) -> bytes:
        """Return `plain` as records, behind other output that waits to be sent."""
        self.raw.write(plain)
        return self.outgoing.read()

    def note_end(self) -> None:
        """Note that the peer's direction has ended. Without a close_notify it may have been cut off."""
        if not self.received_close_notify:
            self.info.truncated = True

    def pending_output(self) -> bytes:
        """Return the protocol's own output: handshake messages, tickets, answers to a key update, alerts."""
        return self.outgoing.read() if self.outgoing.pending else b""

    def close_notify(self) -> bytes:
        """Return the bytes of our close_notify; b"" if the connection can no longer send one."""
        self.sent_close_notify = True
        # Nearly always raises SSLWantReadError: ours is written, and the peer's is not awaited here.
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()
        return self.outgoing.read()
