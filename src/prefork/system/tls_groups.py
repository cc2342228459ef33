"""Limit the key exchange groups of a TLS context to X25519MLKEM768 (OpenSSL 3.5), X25519, P-256 and P-384.

OpenSSL's default also offers ffdhe2048 to ffdhe8192. With those, a message that costs a peer nothing makes the server
compute for 70 ms or more (DHEat, CVE-2022-40735). `ssl` has a call for the list from Python 3.15 on
(`SSLContext.set_groups`). For older versions this file makes OpenSSL's own call, by `libssl.py`. A context whose
pointer cannot be verified offers only P-256, by a call that every Python has.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from .libssl import OpenSSL, UnverifiedPointer, context_pointer

#: The groups in order of preference (Mozilla, Server Side TLS 5.8).
GROUPS = "X25519:P-256:P-384"
if ssl.OPENSSL_VERSION_INFO >= (3, 5):
    GROUPS = f"X25519MLKEM768:{GROUPS}"
#: The only group that remains after `SSLContext.set_ecdh_curve`.
FALLBACK = "prime256v1"

#: openssl/ssl.h
_SET_GROUPS_LIST = 92


def limit_groups(context: ssl.SSLContext, call: Callable[[ssl.SSLContext], None] | None = None) -> str | None:
    """Limit `context`, which no connection uses yet, to GROUPS. If that fails, limit it to P-256 and return the reason.

    `call` sets the groups; by default it is the best call that this Python has.
    """
    best = _by_method if hasattr(context, "set_groups") else by_pointer
    try:
        (call or best)(context)
    except (OSError, ValueError) as exc:
        # ssl.SSLError and UnverifiedPointer are OSErrors.
        context.set_ecdh_curve(FALLBACK)
        return str(exc) or type(exc).__name__
    return None


def _by_method(context: Any) -> None:
    context.set_groups(GROUPS)


def by_pointer(context: ssl.SSLContext) -> None:
    """Set the groups by OpenSSL's own call. Raises OSError; the context is unchanged then."""
    openssl = OpenSSL()
    pointer = context_pointer(context, openssl)
    if openssl.ctrl(pointer, _SET_GROUPS_LIST, 0, GROUPS.encode()) != 1:
        raise UnverifiedPointer("OpenSSL does not know the groups")
