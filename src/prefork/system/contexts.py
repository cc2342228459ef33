"""TLS contexts from certificate files.

Made once, in the process that forks the workers: session-ticket keys live in the context, so only workers that inherit
one resume each other's sessions. No connection appears here.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

from ..config import TLS
from ..errors import ConfigError

#: Mozilla's "intermediate" profile for TLS 1.2 (Server Side TLS 5.x): forward secrecy, authenticated encryption.
INTERMEDIATE_CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)


def build_context(certificates: Sequence[TLS]) -> ssl.SSLContext:
    """A server's context: TLS 1.2 and 1.3, no renegotiation, no compression.

    Raises ConfigError, which names the file and the cure, when the certificate or the key cannot be used.
    """
    if len(certificates) != 1:
        raise ConfigError(f"--tls-cert: {len(certificates)} certificates given, one is supported")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(INTERMEDIATE_CIPHERS)
    # A renegotiation costs the server far more than the client that asks for it (RFC 9325, 3.5).
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    _load(context, certificates[0])
    return context


def renew_context(context: ssl.SSLContext, certificates: Sequence[TLS]) -> None:
    """Load the certificates' files again, into the same context: its session-ticket keys stay, and so do sessions.

    Proven on a scratch context first: `load_cert_chain` that fails half-way leaves a context with a new certificate and
    the old key. Raises ConfigError, and nothing has changed then.
    """
    build_context(certificates)
    _load(context, certificates[0])


def _load(context: ssl.SSLContext, pair: TLS) -> None:
    cert, key = os.fspath(pair.cert), os.fspath(pair.key)
    for option, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as exc:
            reason = os.strerror(exc.errno or 0).lower()
            raise ConfigError(f"{option} {path}: {reason}") from exc

    def refuse_passphrase() -> str:
        # Without a callback OpenSSL asks at the terminal, and the server hangs at start.
        raise ConfigError(
            f"--tls-key {key}: the key is encrypted; decrypt it (openssl pkey -in {key}) and guard the file instead"
        )

    try:
        context.load_cert_chain(cert, key, password=refuse_passphrase)
    except ssl.SSLError as exc:
        raise ConfigError(_explain(cert, key, exc)) from exc


def _explain(cert: str, key: str, exc: ssl.SSLError) -> str:
    reason = exc.reason or str(exc)
    if reason == "KEY_VALUES_MISMATCH":
        return f"--tls-key {key}: does not belong to the certificate {cert}"
    if reason in ("NO_START_LINE", "PEM_LIB", "PEM lib") or "PEM" in str(exc):
        return f"--tls-cert {cert}, --tls-key {key}: not a PEM certificate chain and a PEM private key"
    return f"--tls-cert {cert}, --tls-key {key}: {reason.lower().replace('_', ' ')}"
