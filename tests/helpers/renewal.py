"""Certificates that are renewed as others renew them: in a Kubernetes volume, by certbot, and in place."""

from __future__ import annotations

import base64
import contextlib
import datetime
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import trustme

from helpers import streams

DAY = datetime.timedelta(days=1)


def issue(folder: Path, since: int = -1, until: int = 60) -> Path:
    """Write tls.crt and tls.key for localhost into a new directory, valid by days from now; return the directory."""
    folder.mkdir(parents=True)
    now = datetime.datetime.now(datetime.UTC)
    leaf = streams.authority()[0].issue_cert(
        "localhost", not_before=now + since * DAY, not_after=now + until * DAY, key_type=trustme.KeyType.ECDSA
    )
    leaf.private_key_pem.write_to_path(folder / "tls.key")
    (folder / "tls.key").chmod(0o600)
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(folder / "tls.crt", append=True)
    return folder


def ticket_keys(path: Path, *keys: bytes) -> Path:
    """Write a file of ticket keys, and put it in place at once."""
    new = path.with_name(f".{path.name}.new")
    new.write_text("".join(f"{base64.b64encode(key).decode()}\n" for key in keys))
    new.replace(path)
    return path


class InPlace:
    """The files themselves are overwritten, one after the other."""

    def __init__(self, root: Path, first: Path) -> None:
        self._folder = root / "plain"
        self._folder.mkdir(parents=True)
        self.cert, self.key = self._folder / "tls.crt", self._folder / "tls.key"
        self.renew(first)

    def renew(self, source: Path) -> None:
        for path in (self.cert, self.key):
            if (source / path.name).exists():
                shutil.copy(source / path.name, path)
            else:
                path.unlink(missing_ok=True)


class Kubernetes:
    """A volume of a secret: tls.crt -> ..data/tls.crt, and ..data -> ..TIME, which is replaced by rename(2).

    So neither the path nor the link beside the file ever changes (k8s.io/kubernetes/pkg/volume/util/atomic_writer.go).
    """

    def __init__(self, root: Path, first: Path) -> None:
        self._folder = root / "volume"
        self._folder.mkdir(parents=True)
        self._number = 0
        self.cert, self.key = self._folder / "tls.crt", self._folder / "tls.key"
        self.renew(first)
        for path in (self.cert, self.key):
            path.symlink_to(f"..data/{path.name}")

    def renew(self, source: Path) -> None:
        self._number += 1
        name, data = f"..2026_{self._number}", self._folder / "..data"
        old = data.readlink() if data.is_symlink() else None
        shutil.copytree(source, self._folder / name)
        new = self._folder / "..data_tmp"
        new.symlink_to(name)
        new.replace(data)
        if old is not None:
            shutil.rmtree(self._folder / old)


class Certbot:
    """live/NAME/fullchain.pem -> ../../archive/NAME/fullchain1.pem, a link for each file, which is replaced in turn."""

    def __init__(self, root: Path, first: Path) -> None:
        self._live, self._archive = root / "live" / "localhost", root / "archive" / "localhost"
        self._live.mkdir(parents=True)
        self._archive.mkdir(parents=True)
        self._number = 0
        self.cert, self.key = self._live / "fullchain.pem", self._live / "privkey.pem"
        self.renew(first)

    def renew(self, source: Path) -> None:
        self._number += 1
        for name, path in (("tls.key", self.key), ("tls.crt", self.cert)):
            target = self._archive / f"{path.stem}{self._number}.pem"
            if (source / name).exists():
                shutil.copy(source / name, target)
            path.unlink(missing_ok=True)
            path.symlink_to(os.path.relpath(target, self._live))


LAYOUTS = (InPlace, Kubernetes, Certbot)


def serial_of(folder: Path) -> int:
    """Return the serial number of a certificate that `issue` has written."""
    text = (folder / "tls.crt").read_text()
    return serial(ssl.PEM_cert_to_DER_cert(text[: text.index("-----END") + len("-----END CERTIFICATE-----")]))


def serial(der: bytes) -> int:
    """Return the serial number of a certificate (RFC 5280, 4.1): the first integer after its version."""
    position = der.index(b"\xa0\x03\x02\x01\x02") + 5
    return int.from_bytes(der[position + 2 : position + 2 + der[position + 1]], "big")


@contextlib.contextmanager
def connected(
    port: int, context: ssl.SSLContext | None = None, session: ssl.SSLSession | None = None
) -> Iterator[ssl.SSLSocket]:
    """Connect with TLS, without a check of the certificate."""
    context = context or client()
    with (
        socket.create_connection(("127.0.0.1", port), 10) as sock,
        context.wrap_socket(sock, server_hostname="localhost", session=session) as tls,
    ):
        yield tls


def client() -> ssl.SSLContext:
    """Return a context that checks no certificate; those of this machine's authorities would take 10 ms to load."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def served(port: int) -> int:
    """Return the serial number of the certificate that a new connection is shown."""
    with connected(port) as tls:
        return serial(tls.getpeercert(binary_form=True) or b"")


def s_client(port: int, *options: str) -> str:
    """Connect by openssl, and return what it says; "Reused" or "New" is part of it."""
    words = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options]
    done = subprocess.run(words, input=b"hello\n", capture_output=True, timeout=20)
    return (done.stdout + done.stderr).decode("utf-8", "replace")
