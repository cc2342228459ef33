"""Make TLS contexts from certificate files.

They are made once, in the process that forks the workers. Session-ticket keys live in the context, so workers resume
each other's sessions only if they inherit the same one. No connection appears here.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from ..config import TLS
from ..core.trust import Weakness
from ..errors import ConfigError, reason_of
from ..events import Emit, GroupsReduced, log
from . import paths
from .descriptors import anonymous_file
from .tls_groups import limit_groups

#: Mozilla's "intermediate" profile for TLS 1.2 (Server Side TLS 5.x): forward secrecy, authenticated encryption.
INTERMEDIATE_CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)


@dataclass(frozen=True, slots=True)
class CertificatePair:
    """The content of a certificate file and a key file, read once, so that the validated content is the one loaded."""

    cert: str
    key: str
    cert_bytes: bytes
    key_bytes: bytes
    weaknesses: tuple[tuple[str, Weakness], ...] = ()
    """The reasons why another user could have changed the files, by option."""

    def key_type(self) -> str:
        """Return RSA, EC or another type, as the key file's PEM says; "" if it does not.

        A context keeps one certificate of each type: a new one does not replace one of another type
        (SSL_CTX_use_certificate(3)).
        """
        found = re.search(rb"-----BEGIN ([A-Z ]*)PRIVATE KEY-----([A-Za-z0-9+/=\s]*)-----END", self.key_bytes)
        if found is None or found[1].strip():
            return "" if found is None else found[1].decode().strip()
        # PKCS#8 (RFC 5958): the type is an object identifier near the beginning.
        try:
            start = base64.b64decode(found[2])[:64]
        except ValueError:
            return ""
        return next((name for name, oid in _KEY_TYPES.items() if oid in start), "")


#: rsaEncryption, id-ecPublicKey, Ed25519, Ed448 (RFC 3279, 5480, 8410).
_KEY_TYPES = {
    "RSA": bytes.fromhex("2a864886f70d010101"),
    "EC": bytes.fromhex("2a8648ce3d0201"),
    "ED25519": bytes.fromhex("06032b6570"),
    "ED448": bytes.fromhex("06032b6571"),
}
_CERT_MARK, _KEY_MARK = b"CERTIFICATE-----", b"PRIVATE KEY-----"
#: Longest certificate chain or key that is read.
_MAX_BYTES = 16 * 1024 * 1024


def _read_pair(certificate: TLS) -> CertificatePair:
    cert, key = os.fspath(certificate.cert), os.fspath(certificate.key)
    certs, keys = _read("--tls-cert", cert), _read("--tls-key", key)
    weaknesses = [("--tls-cert", each) for each in certs.weaknesses]
    weaknesses += [("--tls-key", each) for each in keys.weaknesses]
    return CertificatePair(cert, key, certs.data, keys.data, tuple(weaknesses))


def build_context(certificate: TLS, emit: Emit = log) -> ssl.SSLContext:
    """Make a server's context with a certificate: TLS 1.2 and 1.3, no renegotiation, no compression.

    Raises ConfigError, which names the file and the cure, if the certificate or the key cannot be used.
    """
    context = make_context(emit)
    load(context, _read_pair(certificate))
    return context


def validate(certificate: TLS) -> CertificatePair:
    """Read the files and load them into a scratch context. Raises ConfigError.

    Afterwards `load` cannot fail. If it did, it would leave a new certificate with an old key.
    """
    pair = _read_pair(certificate)
    load(_bare_context(), pair)
    return pair


def load(context: ssl.SSLContext, pair: CertificatePair) -> None:
    """Use this certificate from now on, and keep the session-ticket keys. Raises ConfigError."""

    def reject_passphrase() -> str:
        # Without a callback OpenSSL asks at the terminal, and the server hangs at start.
        cure = f"decrypt it (openssl pkey -in {pair.key}) and restrict access to the file instead"
        raise ConfigError(f"--tls-key {pair.key}: the key is encrypted; {cure}", option="--tls-key")

    try:
        with _as_file(pair.cert_bytes) as cert, _as_file(pair.key_bytes) as key:
            context.load_cert_chain(cert, key, password=reject_passphrase)
    except ssl.SSLError as exc:
        text = _explain(pair, exc)
        raise ConfigError(text, option=text.partition(" ")[0]) from exc
    except OSError as exc:
        raise ConfigError(f"--tls-cert {pair.cert}: cannot be loaded: {reason_of(exc)}", option="--tls-cert") from exc


def make_context(emit: Emit = log) -> ssl.SSLContext:
    """Make a server's context without a certificate: as `build_context`, with the groups of `tls_groups.py`."""
    context = _bare_context()
    if reason := limit_groups(context):
        emit(GroupsReduced(reason))
    return context


def _bare_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(INTERMEDIATE_CIPHERS)
    # A renegotiation costs the server far more than the client that requests it (RFC 9325, 3.5).
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # OpenSSL sends two session tickets, for clients that open several connections at once (RFC 8446, C.4). One is
    # enough, because each resumed connection brings the next. A second one would cost every handshake 5 % more.
    context.num_tickets = 1
    return context


def _read(option: str, path: str) -> paths.Content:
    try:
        return paths.read(path, _MAX_BYTES)
    except OSError as exc:
        raise ConfigError(f"{option} {path}: {reason_of(exc)}", option=option) from exc


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Yield the path of a file with this content, in memory if possible, because `ssl` loads from files only."""
    if os.path.isdir("/proc/self/fd"):
        with anonymous_file("prefork-tls") as file:
            file.write(content)
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(buffering=0) as named:
            named.write(content)
            yield named.name


def _explain(pair: CertificatePair, exc: ssl.SSLError) -> str:
    cert, key = f"--tls-cert {pair.cert}", f"--tls-key {pair.key}"
    reason = exc.reason or str(exc)
    # The second is that of a key of another type, such as an RSA key for an EC certificate.
    if reason in ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH"):
        return f"{key}: does not belong to the certificate {pair.cert}"
    if reason not in ("NO_START_LINE", "PEM_LIB", "PEM lib") and "PEM" not in str(exc):
        return f"{cert}, {key}: {reason.lower().replace('_', ' ')}"
    has_cert, has_key = (_CERT_MARK in pair.cert_bytes, _KEY_MARK in pair.key_bytes)
    if not has_cert and not has_key and _CERT_MARK in pair.key_bytes and _KEY_MARK in pair.cert_bytes:
        return f"{cert}, {key}: the certificate and the key look swapped"
    if not has_cert:
        return f"{cert}: not a PEM certificate chain"
    if not has_key:
        return f"{key}: not a PEM private key"
    return f"{cert}, {key}: the PEM certificate chain or the PEM key is damaged"
