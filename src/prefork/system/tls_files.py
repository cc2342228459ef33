"""Read certificates, keys and certificate authorities once, and prove that they can be used.

What is proven here is what contexts load: nothing reads a file twice. No connection appears here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..config import TLS
from ..core.server_names import Choice, Identity, NeverChosen, SameName, choose
from ..core.ticket_keys import MAX_BYTES, TicketKeys, TicketKeysError, parse_ticket_keys
from ..core.trust import Weakness
from ..errors import ConfigError, reason_of
from ..text import escape_controls
from . import paths
from .certificates import read_identity
from .descriptors import anonymous_file
from .ticket_keys import missing_support

_CERT_MARK, _KEY_MARK = b"CERTIFICATE-----", b"PRIVATE KEY-----"
#: Bytes of a seed: as many as the keys that OpenSSL makes of it.
TICKET_SEED_SIZE = 80
#: Longest certificate chain, key, or list of authorities that is read.
_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CertificatePair:
    """The content of a certificate file and a key file, read once, so that the validated content is the one loaded."""

    cert: str
    key: str
    cert_bytes: bytes = field(repr=False)
    key_bytes: bytes = field(repr=False)
    weaknesses: tuple[tuple[str, Weakness], ...] = ()
    """The reasons why another user could have changed the files, by option."""

    @property
    def content(self) -> tuple[bytes, bytes]:
        """What the two files hold."""
        return self.cert_bytes, self.key_bytes

    def identity(self) -> Identity:
        """Return the host names of the certificate and the type of its key."""
        return read_identity(self.cert_bytes)


@dataclass(frozen=True, slots=True)
class ClientCA:
    """The content of the file of --tls-client-ca: the authorities whose certificates clients may present."""

    path: str
    data: bytes
    weaknesses: tuple[tuple[str, Weakness], ...] = ()

    def digest(self) -> bytes:
        """Return what tells this list of authorities from another."""
        return hashlib.sha256(self.data).digest()

    def count(self) -> int:
        """Return the number of authorities."""
        return self.data.count(_CERT_MARK) // 2


@dataclass(frozen=True, slots=True)
class TicketKeyFile:
    """The keys in the file of --tls-ticket-key-file, with which session tickets are encrypted."""

    path: str
    keys: TicketKeys
    weaknesses: tuple[tuple[str, Weakness], ...] = ()


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Everything that the files of one generation said, proven: `TLSContexts.replace` takes it into use."""

    pairs: tuple[CertificatePair, ...]
    client_ca: ClientCA | None = None
    ticket_keys: TicketKeyFile | None = None
    """None: OpenSSL makes the keys of each context itself."""
    ticket_seed: bytes = field(default=b"", repr=False)
    """What the keys of tickets are derived from instead, of TICKET_SEED_SIZE bytes; b"" is no change."""

    @property
    def weaknesses(self) -> tuple[tuple[str, Weakness], ...]:
        """The reasons why another user could have changed one of the files, by option."""
        others = [each for each in (self.client_ca, self.ticket_keys) if each is not None]
        return tuple(weakness for each in (*self.pairs, *others) for weakness in each.weaknesses)

    def content(self, positions: Iterable[int]) -> tuple[object, ...]:
        """Return all that a context with these pairs is made of."""
        authorities = None if self.client_ca is None else self.client_ca.data
        return authorities, *(self.pairs[position].content for position in positions)

    def same_content(self, other: TLSFiles) -> bool:
        """Return whether the files of `other` hold the same, so that using it would change nothing."""
        mine, theirs = (each.content(range(len(each.pairs))) for each in (self, other))
        return mine == theirs and _keys_of(self) == _keys_of(other)

    def same_authorities(self, other: TLSFiles) -> bool:
        """Return whether `other` trusts the same authorities for the certificates of clients."""
        mine, theirs = (None if each is None else each.data for each in (self.client_ca, other.client_ca))
        return mine == theirs

    def choice(self, strict: bool) -> Choice:
        """Return which pairs are offered to which name. Raises ConfigError if one could never be offered."""
        try:
            return choose([pair.identity() for pair in self.pairs], strict)
        except SameName as exc:
            why = f"with the same type of key as {escape_controls(self.pairs[exc.first].cert)}"
            if exc.name:
                reason = f"is for {exc.name}, {why}, so only one could be chosen"
            else:
                reason = f"names no host, {why}, so only one could be chosen"
            raise _refused(self.pairs[exc.second].cert, reason) from exc
        except NeverChosen as exc:
            reason = "names no host (subjectAltName), so no client could be offered it"
            raise _refused(self.pairs[exc.position].cert, reason) from exc


def _keys_of(files: TLSFiles) -> TicketKeys | None:
    return None if files.ticket_keys is None else files.ticket_keys.keys


def _refused(cert: str, reason: str) -> ConfigError:
    return ConfigError(f"--tls-cert {escape_controls(cert)}: {reason}", option="--tls-cert")


def read_files(
    certificates: Sequence[TLS],
    client_ca: str = "",
    strict_sni: bool = False,
    ticket_keys: str = "",
    proven: TLSFiles | None = None,
) -> TLSFiles:
    """Read all files of a server's TLS, and prove each by loading it into a scratch context. Raises ConfigError.

    A pair that is among the `proven` ones is not proven again.
    """
    known = frozenset() if proven is None else frozenset(each.content for each in proven.pairs)
    files = TLSFiles(
        tuple(read_pair(each, known) for each in certificates),
        _read_client_ca(client_ca) if client_ca else None,
        _read_ticket_keys(ticket_keys) if ticket_keys else None,
    )
    files.choice(strict_sni)
    return files


def read_pair(certificate: TLS, proven: Collection[tuple[bytes, bytes]] = ()) -> CertificatePair:
    """Read a certificate and its key, and load them into a scratch context, if they are not `proven` already.

    Raises ConfigError. Afterwards `load_pair` cannot fail. If it did, it would leave a new certificate with an old key.
    """
    cert, key = os.fspath(certificate.cert), os.fspath(certificate.key)
    certs, keys = _read("--tls-cert", cert), _read("--tls-key", key)
    weaknesses = [("--tls-cert", each) for each in certs.weaknesses]
    weaknesses += [("--tls-key", each) for each in keys.weaknesses]
    pair = CertificatePair(cert, key, certs.data, keys.data, tuple(weaknesses))
    if pair.content not in proven:
        load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair)
    return pair


def load_pair(context: ssl.SSLContext, pair: CertificatePair) -> None:
    """Add a certificate, which replaces another one with the same type of key. Raises ConfigError."""

    def reject_passphrase() -> str:
        # Without a callback OpenSSL asks at the terminal, and the server hangs at start.
        cure = f"decrypt it (openssl pkey -in {pair.key}) and restrict access to the file instead"
        raise ConfigError(f"--tls-key {pair.key}: the key is encrypted; {cure}", option="--tls-key")

    try:
        with as_file(pair.cert_bytes) as cert, as_file(pair.key_bytes) as key:
            context.load_cert_chain(cert, key, password=reject_passphrase)
    except ssl.SSLError as exc:
        text = _explain(pair, exc)
        raise ConfigError(text, option=text.partition(" ")[0]) from exc
    except OSError as exc:
        raise ConfigError(f"--tls-cert {pair.cert}: cannot be loaded: {reason_of(exc)}", option="--tls-cert") from exc


def _read_client_ca(path: str) -> ClientCA:
    content = _read("--tls-client-ca", path)
    found = ClientCA(path, content.data, tuple(("--tls-client-ca", each) for each in content.weaknesses))
    load_client_ca(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), found)
    return found


def load_client_ca(context: ssl.SSLContext, authorities: ClientCA) -> None:
    """Trust the authorities for the certificates of clients. Raises ConfigError."""
    option = "--tls-client-ca"
    try:
        with as_file(authorities.data) as path:
            context.load_verify_locations(path)
    except ssl.SSLError as exc:
        reason = "not PEM certificates" if _CERT_MARK not in authorities.data else "the PEM certificates are damaged"
        raise ConfigError(f"{option} {authorities.path}: {reason}", option=option) from exc
    except OSError as exc:
        raise ConfigError(f"{option} {authorities.path}: cannot be loaded: {reason_of(exc)}", option=option) from exc


def _read_ticket_keys(path: str) -> TicketKeyFile:
    option = "--tls-ticket-key-file"
    if reason := missing_support():
        raise ConfigError(f"{option}: this Python cannot set the keys of tickets: {reason}", option=option)
    try:
        with paths.reading_secret(path, MAX_BYTES) as (content, weaknesses):
            keys = parse_ticket_keys(content)
    except TicketKeysError as exc:
        raise ConfigError(f"{option} {path}: {exc}", option=option) from exc
    except OSError as exc:
        raise ConfigError(f"{option} {path}: {reason_of(exc)}", option=option) from exc
    return TicketKeyFile(path, keys, tuple((option, each) for each in weaknesses))


def _read(option: str, path: str) -> paths.Content:
    try:
        return paths.read(path, _MAX_BYTES)
    except OSError as exc:
        raise ConfigError(f"{option} {path}: {reason_of(exc)}", option=option) from exc


@contextlib.contextmanager
def as_file(content: bytes) -> Iterator[str]:
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
