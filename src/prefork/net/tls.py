"""TLS of one connection as a transformation of bytes: what the socket gave goes in, what the handler reads comes out.

Memory BIOs on both sides, so one recv feeds many records and one send carries many. No sockets, no waiting, no
deadlines: those are the stream's. Contexts are made elsewhere, before the fork (`system/tls_contexts.py`), as the
session-ticket keys live in them.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

#: One read of an SSLObject gives one record's worth at most (RFC 8446, 5.1).
RECORD = 16 * 1024


class ServerSSLObject(ssl.SSLObject):
    """An SSLObject that remembers the name its peer asked for (SNI, RFC 6066), which `ssl` tells only to a callback."""

    sni: str | None = None


def remember_sni(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
    """An `SSLContext.sni_callback`."""
    if isinstance(connection, ServerSSLObject):
        connection.sni = name


def prepare_context(context: ssl.SSLContext) -> None:
    """Let `context` tell us the names that peers ask for, unless its owner has put something of their own there."""
    if context.sslobject_class is ssl.SSLObject:
        context.sslobject_class = ServerSSLObject
    if context.sni_callback is None:
        context.sni_callback = remember_sni


class TLSInfo:
    """What is known of a connection's TLS, `stream.tls`. Complete once the handler runs."""

    __slots__ = ("_object", "truncated")

    def __init__(self, connection: ssl.SSLObject) -> None:
        self._object = connection
        self.truncated = False
        """The peer's end came without a close_notify: what was read may have been cut short by somebody in between."""

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """The object itself, for what is not offered here."""
        return self._object

    @property
    def version(self) -> str:
        """`"TLSv1.3"`, `"TLSv1.2"`."""
        return self._object.version() or ""

    @property
    def cipher(self) -> tuple[str, str, int]:
        """Name, protocol that defines it, secret bits."""
        return self._object.cipher() or ("", "", 0)

    @property
    def alpn(self) -> str | None:
        """The protocol that was agreed upon (RFC 7301), or None."""
        return self._object.selected_alpn_protocol()

    @property
    def sni(self) -> str | None:
        """The server name that the peer asked for, or None. The peer chose it: not to be trusted, nor logged raw."""
        return getattr(self._object, "sni", None)

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """As `ssl.SSLSocket.getpeercert()` has it; None where none was asked for or sent."""
        return self._object.getpeercert() or None

    @property
    def resumed(self) -> bool:
        """Whether the handshake was shortened by an earlier session."""
        return bool(self._object.session_reused)

    def __repr__(self) -> str:
        return f"<TLSInfo {self.version} {self.cipher[0]}{' truncated' if self.truncated else ''}>"


class TLSEngine:
    """One TLS connection over two memory BIOs, server side. Every method may raise `ssl.SSLError`, and after that
    `outgoing()` may have an alert for the peer."""

    __slots__ = ("_incoming", "_inner", "_object", "closing", "ended", "info", "said")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self.said = ssl.MemoryBIO()
        """What is to be sent; `said.pending` tells how much."""
        self._object = context.wrap_bio(self._incoming, self.said, server_side=True)
        # `SSLObject` is a layer of Python around this: two calls of each echo.
        self._inner = self._object._sslobj  # type: ignore[attr-defined]  # typeshed leaves it out
        self.info = TLSInfo(self._object)
        self.ended = False
        """The peer has said that it sends no more (close_notify)."""
        self.closing = False
        """We have."""

    def handshake(self, received: bytes = b"") -> bool:
        """Go on with the handshake. True: it is complete; False: more input is needed. Send `outgoing()` either way."""
        self._incoming.write(received)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def decrypt(self, received: bytes = b"") -> bytes:
        """The plain bytes in `received` and what is left from before; b"" where a record is not complete yet.

        Asks how much is pending before it reads: raising and catching SSLWantReadError after each record costs more
        than decrypting it. It still comes once when a record is cut at the end of what was received.
        """
        incoming, inner = self._incoming, self._inner
        incoming.write(received)
        plain: list[bytes] = []
        try:
            while incoming.pending or inner.pending():
                data = inner.read(RECORD)
                if not data:
                    self.ended = True
                    break
                plain.append(data)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            # As `SSLObject.read` has it: the end by a close_notify is no error.
            self.ended = True
        return plain[0] if len(plain) == 1 else b"".join(plain)

    def encrypt(self, plain: bytes | memoryview) -> bytes:
        """`plain` as records, with whatever else waits to be sent."""
        self._inner.write(plain)
        return self.said.read()

    def outgoing(self) -> bytes:
        """What the protocol itself wants to send: handshake messages, tickets, answers to a key update, alerts."""
        return self.said.read() if self.said.pending else b""

    def close_notify(self) -> bytes:
        """The bytes that tell the peer the end; b"" where none can be told any more."""
        self.closing = True
        # Nearly always SSLWantReadError: ours is written, the peer's is not here. It is not waited for.
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()
        return self.said.read()
