"""Certificates for any names, of a server and of its clients, and the contexts of both sides."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import trustme

from prefork.config import TLS
from prefork.system.tls_contexts import TLSContexts, TLSPolicy
from prefork.system.tls_files import TLSFiles

EC, RSA = trustme.KeyType.ECDSA, trustme.KeyType.RSA


@functools.cache
def authority(name: str) -> trustme.CA:
    return trustme.CA(organization_name=name, key_type=EC)


@functools.cache
def issued(
    names: tuple[str, ...], kind: trustme.KeyType = EC, by: str = "server", common: str = ""
) -> trustme.LeafCert:
    return authority(by).issue_cert(*names, key_type=kind, common_name=common or None)


class Certificates:
    """Writes certificates for names into a directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written = 0

    def pair(self, *names: str, kind: trustme.KeyType = EC, common: str = "") -> TLS:
        self._written += 1
        cert, key = self._folder / f"{self._written}.pem", self._folder / f"{self._written}.key"
        leaf = issued(names, kind, common=common)
        cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        key.write_bytes(leaf.private_key_pem.bytes())
        return TLS(str(cert), str(key))

    def authorities(self, *names: str) -> str:
        path = self._folder / f"{'-'.join(names)}.ca"
        path.write_bytes(b"".join(authority(name).cert_pem.bytes() for name in names))
        return str(path)


def contexts(files: TLSFiles, **policy: Any) -> TLSContexts:
    found = TLSContexts(TLSPolicy(**policy), lambda event: None)
    found.replace(files)
    return found


def client(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, alpn: Iterable[str] = ()) -> ssl.SSLContext:
    """Return the context of a client that trusts the server's authority, and looks at no name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = context.maximum_version = version
    authority("server").configure_trust(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def presenting(by: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """Return the context of a client with a certificate of this authority."""
    context = client(version)
    issued(("client@example.test",), by=by).configure_cert(context)
    return context
