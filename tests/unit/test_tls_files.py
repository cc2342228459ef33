"""The message of a certificate or a key that cannot be loaded names the file and the cure."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from prefork.config import TLS
from prefork.errors import ConfigError
from prefork.system.tls_files import read_pair

PROBLEMS = {
    ("key", "cert"): "--tls-cert {key}, --tls-key {cert}: the certificate and the key look swapped",
    ("text", "key"): "--tls-cert {text}: not a PEM certificate chain",
    ("cert", "text"): "--tls-key {text}: not a PEM private key",
    ("cert", "broken"): "--tls-cert {cert}, --tls-key {broken}: the PEM certificate chain or the PEM key is damaged",
}


@pytest.mark.parametrize(("cert", "key"), PROBLEMS)
def test_the_message_names_the_wrong_file(certs: dict[str, str], tmp_path: Path, cert: str, key: str) -> None:
    (tmp_path / "text").write_text("not PEM at all\n")
    (tmp_path / "broken").write_text("-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n")
    files = {"cert": certs["cert"], "key": certs["key"], "text": tmp_path / "text", "broken": tmp_path / "broken"}
    with pytest.raises(ConfigError, match="^" + re.escape(PROBLEMS[cert, key].format_map(files)) + "$"):
        read_pair(TLS(files[cert], files[key]))


def test_a_key_of_another_type_does_not_belong_to_the_certificate(certs: dict[str, str], tmp_path: Path) -> None:
    """The certificate is one for EC; OpenSSL's own reason for an RSA key is "no certificate assigned"."""
    key = tmp_path / "rsa.pem"
    openssl = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(key)]
    subprocess.run(openssl, check=True, capture_output=True)
    with pytest.raises(ConfigError, match=f"^--tls-key {re.escape(str(key))}: does not belong to the certificate "):
        read_pair(TLS(certs["cert"], key))
