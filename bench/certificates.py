"""The certificate that all servers show: one for all, ECDSA on P-256, made for this run."""

from __future__ import annotations

from pathlib import Path

from .errors import BenchError


def write_certificate(folder: Path) -> tuple[str, str]:
    """Paths of certificate and key, written to `folder`. Raises BenchError where what makes them is not installed."""
    try:
        import trustme
    except ModuleNotFoundError:
        raise BenchError("this Python has no trustme and maybe no peers; make bench installs all of them") from None
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    issued = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    certificate, key = folder / "cert.pem", folder / "key.pem"
    issued.private_key_pem.write_to_path(str(key))
    for number, pem in enumerate(issued.cert_chain_pems):
        pem.write_to_path(str(certificate), append=number > 0)
    return str(certificate), str(key)
