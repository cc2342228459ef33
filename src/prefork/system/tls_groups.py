"""The key exchange groups of a TLS context of our own: X25519, P-256, P-384.

OpenSSL's default also has ffdhe2048 to ffdhe8192. With those a peer makes the server compute for 70 ms and more for a
message that costs the peer nothing (DHEat, CVE-2022-40735). `ssl` has a call for the list from Python 3.15 on
(`SSLContext.set_groups`); before, this file makes OpenSSL's own call on the SSL_CTX that the context object holds.

A wrong pointer would crash the process, so the pointer is proven first: `prove` says how. A context that cannot be
proven gets P-256 alone, by a call that every Python has.
"""

from __future__ import annotations

import os
import platform
import ssl
import sys
from collections.abc import Callable
from typing import Any

#: In the order of preference.
GROUPS = "X25519:P-256:P-384"
#: The one group that `SSLContext.set_ecdh_curve` leaves.
FALLBACK = "prime256v1"

#: openssl/ssl.h
_SET_GROUPS_LIST = 92
_GET_MIN_PROTO_VERSION = 130
_GET_MAX_PROTO_VERSION = 131
#: Of an SSL_CTX, which is longer, must be readable.
_READABLE = 256
#: Pythons whose context object begins with the header and the SSL_CTX pointer (Modules/_ssl.c, PySSLContext).
_KNOWN = ((3, 11), (3, 14))
#: What is set through Python, to be found again through the pointer: (lowest version, highest version, options).
_MARKS = (
    (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, ssl.OP_NO_TICKET),
    (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3, ssl.OP_NO_RENEGOTIATION),
    (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3, ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_TICKET),
)
_MARKED = ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE


class Unproven(Exception):
    """Why the SSL_CTX of a context is not touched."""


def limit_groups(context: ssl.SSLContext, call: Callable[[ssl.SSLContext], None] | None = None) -> str:
    """Let `context`, which no connection uses yet, offer GROUPS alone. "" if it does; else why it offers P-256 alone.

    `call` does it; by default the best call that this Python has.
    """
    try:
        (call or _best_call(context))(context)
    except (Unproven, OSError, ValueError) as exc:
        # ssl.SSLError is an OSError.
        context.set_ecdh_curve(FALLBACK)
        return str(exc) or type(exc).__name__
    return ""


def _best_call(context: ssl.SSLContext) -> Callable[[ssl.SSLContext], None]:
    return _by_method if hasattr(context, "set_groups") else by_pointer


def _by_method(context: Any) -> None:
    context.set_groups(GROUPS)


def by_pointer(context: ssl.SSLContext) -> None:
    """Make OpenSSL's own call. Raises Unproven, or OSError; the context is as before then."""
    openssl = _OpenSSL()
    pointer = _find_pointer(context, openssl)
    prove(context, pointer, openssl)
    if openssl.ctrl(pointer, _SET_GROUPS_LIST, 0, GROUPS.encode()) != 1:
        raise Unproven("OpenSSL does not know the groups")


class _OpenSSL:
    """Calls of the libssl that `_ssl` itself uses. Raises Unproven where it is not there for certain."""

    def __init__(self) -> None:
        try:
            import _ssl
            import ctypes
        except ImportError as exc:
            raise Unproven(f"this Python has no {exc.name}") from exc
        # A search through the handle of a module finds what the module itself is linked with (dlsym(3)).
        module = getattr(_ssl, "__file__", None)
        try:
            library = ctypes.CDLL(module)
            version, options, ctrl = (
                library.OpenSSL_version_num,
                library.SSL_CTX_get_options,
                library.SSL_CTX_ctrl,
            )
        except (OSError, AttributeError) as exc:
            raise Unproven(f"libssl has not the calls: {exc}") from exc
        version.restype, version.argtypes = ctypes.c_ulong, []
        if version() != ssl.OPENSSL_VERSION_NUMBER:
            raise Unproven(f"another libssl was found than {ssl.OPENSSL_VERSION}")
        options.restype, options.argtypes = ctypes.c_uint64, [ctypes.c_void_p]
        ctrl.restype = ctypes.c_long
        ctrl.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p]
        self.options: Callable[[int], int] = options
        self.ctrl: Callable[[int, int, int, bytes | None], int] = ctrl
        self._ctypes = ctypes
        self.context_type: type = _ssl._SSLContext

    def read_pointer(self, address: int) -> int:
        """The pointer that is stored there; 0 for NULL."""
        return self._ctypes.c_void_p.from_address(address).value or 0

    def readable(self, address: int) -> bool:
        """Whether the kernel can read there: unlike a read of our own, it answers with an error (write(2), EFAULT)."""
        libc = self._ctypes.CDLL(None)
        write = libc.write
        write.restype = self._ctypes.c_ssize_t
        write.argtypes = [self._ctypes.c_int, self._ctypes.c_void_p, self._ctypes.c_size_t]
        reader, writer = os.pipe()
        try:
            return bool(write(writer, address, _READABLE) == _READABLE)
        finally:
            os.close(reader)
            os.close(writer)


def _find_pointer(context: ssl.SSLContext, openssl: _OpenSSL) -> int:
    """The SSL_CTX of `context`, by what is known of the object's layout; that it can be read is certain."""
    if platform.python_implementation() != "CPython" or not _KNOWN[0] <= sys.version_info[:2] <= _KNOWN[1]:
        raise Unproven(f"the layout of contexts is not known for {platform.python_implementation()} {sys.version}")
    kind = openssl.context_type
    header, word = object.__basicsize__, openssl._ctypes.sizeof(openssl._ctypes.c_void_p)
    if not isinstance(context, kind) or kind.__basicsize__ < header + 2 * word or kind.__itemsize__:
        raise Unproven("the layout of contexts is another one")
    # `id` is the address of the object; its first field follows the header.
    pointer = openssl.read_pointer(id(context) + header)
    if not pointer or pointer % word or not openssl.readable(pointer):
        raise Unproven("the context holds no pointer where it should")
    return pointer


def prove(context: ssl.SSLContext, pointer: int, openssl: _OpenSSL) -> None:
    """Raise Unproven unless `pointer` is the SSL_CTX of `context`: what is set there through Python, in several
    patterns, must be found again through the pointer. The context is left as it was."""
    before = context.minimum_version, context.maximum_version, context.options
    try:
        for lowest, highest, options in _MARKS:
            # The lowest version first goes down: it may never be above the highest.
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version, context.minimum_version = highest, lowest
            # The other bits stay: to set one of a version that is switched off again is deprecated.
            context.options = context.options & ~_MARKED | options
            found = (
                openssl.ctrl(pointer, _GET_MIN_PROTO_VERSION, 0, None),
                openssl.ctrl(pointer, _GET_MAX_PROTO_VERSION, 0, None),
                openssl.options(pointer),
            )
            if found != (lowest, highest, int(context.options)):
                raise Unproven("the pointer of the context is not an SSL_CTX")
    finally:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version, context.minimum_version = before[1], before[0]
        context.options = before[2]
