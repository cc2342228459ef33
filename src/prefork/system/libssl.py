"""Find the SSL_CTX of an `ssl.SSLContext`, for calls of OpenSSL that Python's `ssl` does not have.

What is called is decided elsewhere. A wrong pointer would crash the process, so `verify_pointer` checks it first.
"""

from __future__ import annotations

import os
import platform
import ssl
import sys
from collections.abc import Callable
from typing import Any

#: openssl/ssl.h
_GET_MIN_PROTO_VERSION = 130
_GET_MAX_PROTO_VERSION = 131
#: Bytes of an SSL_CTX that must be readable; the structure is longer.
_READABLE = 256
#: First and last Python whose context object begins with the header and the SSL_CTX pointer (Modules/_ssl.c,
#: PySSLContext).
_KNOWN = ((3, 11), (3, 14))
#: Patterns set through Python that must be read back through the pointer: (lowest version, highest version, options).
_PATTERNS = (
    (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, ssl.OP_NO_TICKET),
    (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3, ssl.OP_NO_RENEGOTIATION),
    (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3, ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_TICKET),
)
_PATTERN_BITS = ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE


class UnverifiedPointer(OSError):
    """Raised with the reason why the SSL_CTX of a context is not touched, or what OpenSSL refuses.

    An OSError, so that what can go on without a descriptor or memory can go on without this.
    """


class OpenSSL:
    """Calls of the libssl that `_ssl` itself uses. Raises UnverifiedPointer if it cannot be identified."""

    def __init__(self) -> None:
        try:
            import _ssl
            import ctypes
        except ImportError as exc:
            raise UnverifiedPointer(f"this Python has no {exc.name}") from exc
        # A search through a module's handle also finds what the module is linked with (dlsym(3)).
        module = getattr(_ssl, "__file__", None)
        try:
            library = ctypes.CDLL(module)
            version = library.OpenSSL_version_num
            options, ctrl = library.SSL_CTX_get_options, library.SSL_CTX_ctrl
        except (OSError, AttributeError) as exc:
            raise UnverifiedPointer(f"libssl lacks a call: {exc}") from exc
        version.restype, version.argtypes = ctypes.c_ulong, []
        if version() != ssl.OPENSSL_VERSION_NUMBER:
            raise UnverifiedPointer(f"the libssl that was found is not {ssl.OPENSSL_VERSION}")
        options.restype, options.argtypes = ctypes.c_uint64, [ctypes.c_void_p]
        ctrl.restype = ctypes.c_long
        ctrl.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p]
        self.options: Callable[[int], int] = options
        self.ctrl: Callable[[int, int, int, Any], int] = ctrl
        self.ctypes = ctypes
        self.context_type: type = _ssl._SSLContext
        self._library = library

    def function(self, name: str, restype: Any, *argtypes: Any) -> Any:
        """Return a function of libssl. Raises UnverifiedPointer if there is none of that name."""
        try:
            # By the name in brackets, which makes a new object: types that are set do not concern other users of it.
            found = self._library[name]
        except AttributeError as exc:
            raise UnverifiedPointer(f"libssl lacks a call: {exc}") from exc
        found.restype, found.argtypes = restype, list(argtypes)
        return found

    def read_pointer(self, address: int) -> int:
        """Return the pointer that is stored at `address`; 0 for NULL."""
        return self.ctypes.c_void_p.from_address(address).value or 0

    def readable(self, address: int) -> bool:
        """Return whether memory is readable. The kernel answers with an error instead of a crash (write(2), EFAULT)."""
        write = self.ctypes.CDLL(None).write
        write.restype = self.ctypes.c_ssize_t
        write.argtypes = [self.ctypes.c_int, self.ctypes.c_void_p, self.ctypes.c_size_t]
        reader, writer = os.pipe()
        try:
            return bool(write(writer, address, _READABLE) == _READABLE)
        finally:
            os.close(reader)
            os.close(writer)


def context_pointer(context: ssl.SSLContext, openssl: OpenSSL) -> int:
    """Return the verified SSL_CTX of `context`, which no handshake uses meanwhile. Raises UnverifiedPointer or OSError.

    It is valid as long as `context` is.
    """
    pointer = find_pointer(context, openssl)
    verify_pointer(context, pointer, openssl)
    return pointer


def find_pointer(context: ssl.SSLContext, openssl: OpenSSL) -> int:
    """Return the SSL_CTX of `context` by the known layout of the object. It is certain to be readable."""
    if platform.python_implementation() != "CPython" or not _KNOWN[0] <= sys.version_info[:2] <= _KNOWN[1]:
        raise UnverifiedPointer(
            f"the layout of contexts is unknown for {platform.python_implementation()} {sys.version}"
        )
    kind = openssl.context_type
    header, word = object.__basicsize__, openssl.ctypes.sizeof(openssl.ctypes.c_void_p)
    if not isinstance(context, kind) or kind.__basicsize__ < header + 2 * word or kind.__itemsize__:
        raise UnverifiedPointer("the layout of contexts has changed")
    # `id` is the address of the object. Its first field follows the header.
    pointer = openssl.read_pointer(id(context) + header)
    if not pointer or pointer % word or not openssl.readable(pointer):
        raise UnverifiedPointer("the context holds no pointer where it should")
    return pointer


def verify_pointer(context: ssl.SSLContext, pointer: int, openssl: OpenSSL) -> None:
    """Raise UnverifiedPointer unless `pointer` is the SSL_CTX of `context`. The context is unchanged afterwards.

    Several patterns are set through Python and must be read back through the pointer.
    """
    before = context.minimum_version, context.maximum_version, context.options
    try:
        for lowest, highest, options in _PATTERNS:
            # Lower the lowest version first, because it may never be above the highest.
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version, context.minimum_version = highest, lowest
            # Keep the other bits: setting that of a version that is switched off is deprecated.
            context.options = context.options & ~_PATTERN_BITS | options
            found = (
                openssl.ctrl(pointer, _GET_MIN_PROTO_VERSION, 0, None),
                openssl.ctrl(pointer, _GET_MAX_PROTO_VERSION, 0, None),
                openssl.options(pointer),
            )
            if found != (lowest, highest, int(context.options)):
                raise UnverifiedPointer("the pointer of the context is not an SSL_CTX")
    finally:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version, context.minimum_version = before[1], before[0]
        context.options = before[2]
