"""What OpenSSL does for the contexts of a server by calls that `ssl` lacks: ALPN that fails closed, keys of tickets,
and the names of authorities.

`ssl` goes on without a protocol if client and server have none in common. RFC 7301, 3.2, demands a fatal alert, because
a peer that speaks another protocol could be made to send commands (ALPACA, 2021). Where the SSL_CTX cannot be verified,
nothing here is available, and the callers do without.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Sequence
from typing import Any

from ..core.alpn import choose_protocol
from .libssl import OpenSSL, UnverifiedPointer, context_pointer

#: openssl/tls1.h, what an ALPN callback returns.
_ACCEPTED, _FATAL_ALERT = 0, 2
#: openssl/ssl.h
_GET_TICKET_KEYS, _SET_TICKET_KEYS = 58, 59


#: Every callback, for ever: an SSL_CTX lives as long as its last connection, and OpenSSL calls back until then.
_callbacks: list[object] = []


class TLSCalls:
    """Calls libssl for the contexts of one server. Raises UnverifiedPointer if that is impossible."""

    def __init__(self, protocols: Sequence[str]) -> None:
        self._openssl = OpenSSL()
        types = self._openssl.ctypes
        number, size, pointer = types.c_int, types.c_uint, types.c_void_p
        self._flush_sessions = self._openssl.function("SSL_CTX_flush_sessions", None, pointer, types.c_long)
        self._set_alpn_callback = self._openssl.function("SSL_CTX_set_alpn_select_cb", None, pointer, pointer, pointer)
        self._load_names = self._openssl.function("SSL_load_client_CA_file", pointer, types.c_char_p)
        self._set_names = self._openssl.function("SSL_CTX_set_client_CA_list", None, pointer, pointer)
        self._callback: Any = None
        if protocols:
            kind = types.CFUNCTYPE(
                number, pointer, types.POINTER(pointer), types.POINTER(types.c_ubyte), pointer, size, pointer
            )
            own = [each.encode("ascii") for each in protocols]
            try:
                self._callback = kind(_protocol_chooser(types, own))
                _callbacks.append(self._callback)
            except (OSError, MemoryError) as exc:
                # Where no memory may be executable (systemd's MemoryDenyWriteExecute), libffi before 3.4 makes none.
                raise UnverifiedPointer("the system allows no callbacks of ctypes") from exc

    def pointer(self, context: ssl.SSLContext) -> int:
        """Return the verified SSL_CTX of a context that no handshake uses yet, for `select_protocols` and others."""
        return context_pointer(context, self._openssl)

    def select_protocols(self, pointer: int) -> None:
        """Negotiate ALPN with a fatal alert if there is no common protocol. A client may do without ALPN."""
        if self._callback is not None:
            self._set_alpn_callback(pointer, self._callback, None)

    def name_authorities(self, pointer: int, path: str) -> None:
        """Tell clients the names of the authorities in the PEM file at `path`, so that they choose a certificate."""
        names = self._load_names(path.encode())
        if not names:
            raise UnverifiedPointer("OpenSSL reads no names of authorities")
        # The context owns them from now on.
        self._set_names(pointer, names)

    def ticket_keys(self, pointer: int) -> bytes:
        """Return the keys that OpenSSL made for the tickets of a context (SSL_CTX_set_tlsext_ticket_keys(3))."""
        length = self._openssl.ctrl(pointer, _GET_TICKET_KEYS, 0, None)
        buffer = self._openssl.ctypes.create_string_buffer(max(length, 0))
        if length <= 0 or self._openssl.ctrl(pointer, _GET_TICKET_KEYS, length, buffer) != 1:
            raise UnverifiedPointer("OpenSSL does not tell the keys of tickets")
        return bytes(buffer.raw)

    def separate_sessions(self, pointer: int, keys: bytes, group: bytes) -> None:
        """Let only sessions be resumed that were made in the same `group`: derive keys for tickets from it and `keys`,
        and forget the sessions that are not in tickets. Every process that does the same has the same keys."""
        derived = hashlib.shake_256(b"prefork session tickets" + keys + group).digest(len(keys))
        if self._openssl.ctrl(pointer, _SET_TICKET_KEYS, len(derived), derived) != 1:
            raise UnverifiedPointer("OpenSSL does not take the keys of tickets")
        # 0: all of them (SSL_CTX_flush_sessions(3)).
        self._flush_sessions(pointer, 0)


def _protocol_chooser(types: Any, own: Sequence[bytes]) -> Any:
    """Return an ALPN callback (SSL_CTX_set_alpn_select_cb(3)), for ctypes."""
    # OpenSSL copies the name after the callback has returned.
    names = [types.create_string_buffer(each, len(each)) for each in own]
    addresses = [types.addressof(each) for each in names]

    def choose(_ssl: object, out: Any, out_length: Any, offered: int, length: int, _arg: object) -> int:
        # An exception may not leave a callback: ctypes would print it, and return 0, which accepts.
        try:
            position = choose_protocol(own, types.string_at(offered, length))
            if position is not None:
                out[0], out_length[0] = addresses[position], len(names[position])
        except BaseException:
            return _FATAL_ALERT
        return _FATAL_ALERT if position is None else _ACCEPTED

    return choose
