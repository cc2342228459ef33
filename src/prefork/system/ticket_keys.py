"""Have session tickets encrypted with keys that are given, and not with those that OpenSSL makes for each context.

`ssl` has no call for it, so this file makes OpenSSL's own (SSL_CTX_set_tlsext_ticket_key_evp_cb(3), OpenSSL 3.0 and
newer), through `libssl.py`. Where keys come from and when they change is decided elsewhere.

OpenSSL calls back for each ticket that it writes or reads. The callback is a function in Python, which ctypes calls
with the GIL. It copies and looks up; OpenSSL encrypts. It adds 15 to 30 us to the 220 to 280 us of a handshake. In C it
would cost next to nothing, but only where prefork was compiled, and resumption must not depend on that.

* A callback is never freed, because an SSL_CTX lives as long as its last connection, and OpenSSL calls it until then.
* It raises nothing: ctypes would print the exception. A ticket that cannot be read is one of an unknown key, and the
  handshake becomes a full one. A ticket that cannot be written ends the handshake, because TLS 1.3 has no empty one.
* The keys lie in memory that is kept out of core dumps, and are overwritten when others replace them.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import ssl
import threading
from typing import Any

from ..core.ticket_keys import MAX_KEYS, NAME_SIZE, TicketKey, TicketKeys
from .libssl import OpenSSL, UnverifiedPointer, context_pointer

#: What a callback returns (SSL_CTX_set_tlsext_ticket_key_evp_cb(3)).
_FAILED, _UNKNOWN, _USED, _USED_AND_RENEWED = -1, 0, 1, 2
#: openssl/ssl.h, openssl/core.h
_TLS_1_3 = 0x0304
_UTF8_STRING, _OCTET_STRING = 4, 5
_IV_SIZE = 16
#: Bytes of memory for the longest AES key and the longest MAC key of each key.
_SLOT = 64
#: Every callback, for ever.
_callbacks: list[object] = []


@functools.cache
def missing_support() -> str:
    """Return why the keys of tickets cannot be set in this process; "" if they can."""
    try:
        TicketKeyring().install(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    except OSError as exc:
        return str(exc) or type(exc).__name__
    return ""


class TicketKeyring:
    """The keys of the tickets of any number of contexts. Owns its copy of them, in memory that no core dump has.

    `replace` has to be called before the first handshake. Raises UnverifiedPointer if this Python's OpenSSL has no such
    keys.
    """

    def __init__(self) -> None:
        self._openssl = openssl = OpenSSL()
        self._calls = calls = _Calls(openssl)
        self._memory = mmap.mmap(-1, MAX_KEYS * _SLOT, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError, AttributeError, ValueError):
            self._memory.madvise(mmap.MADV_DONTDUMP)
        self._keys: dict[bytes, _LoadedKey] = {}
        self._encrypting = b""
        self._lock = threading.Lock()
        """Held while keys are used or replaced. Otherwise a handshake in another thread could use keys of zeros."""
        try:
            self._callback = calls.callback_type(self._on_ticket)
        except (OSError, MemoryError) as exc:
            # Where no memory may be executable, libffi before 3.4 cannot make one.
            raise UnverifiedPointer("no callback can be made here") from exc
        _callbacks.append(self._callback)

    def replace(self, keys: TicketKeys) -> None:
        """Use a copy of these keys from now on, and overwrite the copy of those before."""
        with self._lock:
            self._keys = {}
            self._memory[:] = bytes(len(self._memory))
            for position, key in enumerate(keys.keys):
                self._keys[key.name] = _LoadedKey(key, self._memory, position * _SLOT, self._calls)
            self._encrypting = keys.encrypting.name

    def install(self, context: ssl.SSLContext) -> None:
        """Have the tickets of `context`, which no connection uses yet, encrypted with these keys, now and later.

        Raises OSError; the context is unchanged then.
        """
        if self._calls.set_callback(context_pointer(context, self._openssl), self._callback) != 1:
            raise UnverifiedPointer("OpenSSL takes no ticket keys")

    def _on_ticket(self, connection: int, name: int, iv: int, cipher: int, mac: int, encrypts: int) -> int:
        try:
            with self._lock:
                if encrypts:
                    return self._encrypt(name, iv, cipher, mac)
                return self._decrypt(connection, name, iv, cipher, mac)
        except BaseException:
            # Also what a signal handler raises, which ctypes would lose as well.
            return _FAILED if encrypts else _UNKNOWN

    def _encrypt(self, name: int, iv: int, cipher: int, mac: int) -> int:
        calls, key = self._calls, self._keys[self._encrypting]
        calls.memmove(name, self._encrypting, NAME_SIZE)
        calls.memmove(iv, os.urandom(_IV_SIZE), _IV_SIZE)
        done = calls.encrypt(cipher, key.cipher, None, key.aes, iv) == 1 and calls.set_mac(mac, key.parameters) == 1
        return _USED if done else _FAILED

    def _decrypt(self, connection: int, name: int, iv: int, cipher: int, mac: int) -> int:
        calls, found = self._calls, self._calls.string_at(name, NAME_SIZE)
        key = self._keys.get(found)
        if key is None or calls.decrypt(cipher, key.cipher, None, key.aes, iv) != 1:
            return _UNKNOWN
        if calls.set_mac(mac, key.parameters) != 1:
            return _UNKNOWN
        # With TLS 1.3 a client uses each ticket once (RFC 8446, C.4), so that it needs another one in any case.
        renews = found != self._encrypting or calls.version(connection) >= _TLS_1_3
        return _USED_AND_RENEWED if renews else _USED


class _LoadedKey:
    """One key as OpenSSL takes it: addresses in the memory of the keyring."""

    __slots__ = ("aes", "cipher", "kept", "parameters")

    def __init__(self, key: TicketKey, memory: mmap.mmap, offset: int, calls: _Calls) -> None:
        size = len(key.aes)
        memory[offset : offset + size] = key.aes
        memory[offset + size : offset + 2 * size] = key.mac
        self.cipher: int = calls.aes_128 if size == 16 else calls.aes_256
        self.aes, mac = calls.address_in(memory, offset), calls.address_in(memory, offset + size)
        self.kept, self.parameters = calls.mac_parameters(mac, size)


class _Calls:
    """The calls of libssl and libcrypto that a callback makes. Raises UnverifiedPointer if one is missing.

    Through PyDLL, which keeps the GIL: each takes less time than to give it away.
    """

    def __init__(self, openssl: OpenSSL) -> None:
        # It was found with `openssl`, in the file of `_ssl`.
        import _ssl

        ctypes = openssl.ctypes
        library: Any = ctypes.PyDLL(getattr(_ssl, "__file__", None))
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        self.callback_type: Any = ctypes.CFUNCTYPE(integer, *[pointer] * 5, integer)
        try:
            self.set_callback = library.SSL_CTX_set_tlsext_ticket_key_evp_cb
            self.encrypt, self.decrypt = library.EVP_EncryptInit_ex, library.EVP_DecryptInit_ex
            self.set_mac, self.version = library.EVP_MAC_CTX_set_params, library.SSL_version
            ciphers = library.EVP_aes_128_cbc, library.EVP_aes_256_cbc
        except AttributeError as exc:
            raise UnverifiedPointer("it takes OpenSSL 3.0 or newer") from exc
        self.set_callback.argtypes = [pointer, self.callback_type]
        for call in (self.encrypt, self.decrypt):
            call.argtypes = [pointer] * 5
        self.set_mac.argtypes = [pointer, pointer]
        self.version.argtypes = [pointer]
        for cipher in ciphers:
            cipher.argtypes, cipher.restype = [], pointer
        self.aes_128, self.aes_256 = (cipher() for cipher in ciphers)
        self.memmove, self.string_at = ctypes.memmove, ctypes.string_at
        self._ctypes = ctypes
        self._parameter = self._parameter_type()

    def address_in(self, memory: mmap.mmap, offset: int) -> int:
        """Return the address of a byte of `memory`, which must stay open."""
        address: int = self._ctypes.addressof(self._ctypes.c_char.from_buffer(memory, offset))
        return address

    def _parameter_type(self) -> Any:
        ctypes = self._ctypes

        class Parameter(ctypes.Structure):  # type: ignore[name-defined,misc]  # ctypes is a value here
            _fields_ = (
                ("name", ctypes.c_char_p),
                ("kind", ctypes.c_uint),
                ("data", ctypes.c_void_p),
                ("size", ctypes.c_size_t),
                ("returned", ctypes.c_size_t),
            )

        return Parameter

    def mac_parameters(self, key: int, size: int) -> tuple[object, int]:
        """Return what sets an HMAC-SHA256 key of `size` bytes at the address `key` (OSSL_PARAM(3)), and its address.

        The address is valid while the first is kept.
        """
        ctypes, kind = self._ctypes, self._parameter
        digest = ctypes.create_string_buffer(b"SHA256")
        parameters = (kind * 3)(
            kind(b"key", _OCTET_STRING, key, size, 0),
            kind(b"digest", _UTF8_STRING, ctypes.addressof(digest), len(digest.value), 0),
            kind(None, 0, None, 0, 0),
        )
        return (parameters, digest), ctypes.addressof(parameters)
