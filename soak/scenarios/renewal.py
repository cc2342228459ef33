"""Certificates that are renewed under load: nothing is lost, and every later handshake is shown the new one."""

from __future__ import annotations

import dataclasses
import os
import socket
import ssl
import time
from pathlib import Path

import trustme

from .. import proc
from ..report import Row, zero
from ..scenario import Context, loaded
from ..servers import Certificates, Fleet, serving

WORKERS = 4
RENEWALS = 200
#: Handshakes that are looked at after each renewal, and seconds after which they begin.
LOOKED_AT, AFTER = 20, 0.1
#: Connections a second, which are all handshakes.
RATE = 50.0


def run(context: Context) -> list[Row]:
    """Overwrite certificate and key, one after the other, again and again, while connections are made all the time."""
    renewals = context.count(RENEWALS, 3)
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    folder = context.folder / "renewal"
    folder.mkdir()
    live = Certificates(*(str(folder / f"{name}.pem") for name in ("cert", "key", "authority")))
    authority.cert_pem.write_to_path(live.authority)
    shown = _renew(authority, live)
    with serving(workers=WORKERS, certificates=live) as fleet:
        workers = fleet.wait_ready(WORKERS)
        wrong, took = 0, []
        with loaded(_with(context, live), [(1.0, fleet.targets()[0])], rate=RATE) as load:
            for number in range(renewals):
                shown, begun = _renew(authority, live), time.monotonic()
                _wait(fleet, number + 1)
                took.append(time.monotonic() - begun)
                time.sleep(AFTER)
                wrong += sum(_served(fleet.port) != shown for _ in range(LOOKED_AT))
                if (number + 1) % max(1, renewals // 10) == 0:
                    context.say(f"renewal: {number + 1} renewals, {load.attempts:,} connections")
            ledger, _ = load.stop()
        same = fleet.wait_ready(WORKERS) == workers
    slowest = f"the slowest renewal was in use after {max(took):.1f} s"
    what = f"W={WORKERS}, TLS, {renewals} renewals of certificate and key in place, no reload"
    looked_at = renewals * LOOKED_AT
    return [
        zero("renewal", what, ledger.lost, ledger.attempts, "connections", [slowest], same),
        zero("renewal", f"{what}; shown the old one {AFTER:g} s later", wrong, looked_at, "handshakes", [], True),
    ]


def _with(context: Context, certificates: Certificates) -> Context:
    return dataclasses.replace(context, _certificates=certificates)


def _wait(fleet: Fleet, renewals: int) -> None:
    """Wait until this number of renewals is in use."""
    proc.wait_until(lambda: fleet.status()["certificate_reloads"]["ok"] >= renewals, 60.0, "a renewal", 0.02)


def _renew(authority: trustme.CA, live: Certificates) -> bytes:
    """Issue a new certificate with a new key, and put first one and then the other in place. Return it in DER."""
    leaf = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    for path, content in ((live.cert, leaf.cert_chain_pems[0]), (live.key, leaf.private_key_pem)):
        new = Path(f"{path}.new")
        new.write_bytes(content.bytes())
        os.replace(new, path)
    return ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode("ascii"))


def _served(port: int) -> bytes | None:
    """Return the certificate that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 10) as sock, context.wrap_socket(sock) as secure:
        return secure.getpeercert(binary_form=True)
