"""What scanners find in both profiles: nothing but what comes from the certificates of a test."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.certificates import EC, RSA, Certificates
from helpers.support import need

from prefork.testing import Server, run_server

pytestmark = [pytest.mark.slow, pytest.mark.deadline(900)]
#: Findings of testssl.sh about a certificate that no public authority has signed.
ABOUT_CERTIFICATES = re.compile(r"cert_|DNS_CAArecord")
#: The same in sslyze.
SSLYZE_ABOUT_CERTIFICATES = {"certificate_path_validation", "maximum_certificate_lifespan"}


@pytest.fixture(params=["intermediate", "modern"])
def profile(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def server(profile: str, tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "service.py").write_text("async def handle(stream): await stream.send(await stream.read(100))\n")
    certificates = Certificates(tmp_path)
    options = ["--tls-profile", profile, "-w", "1"]
    for kind in (EC, RSA):
        pair = certificates.pair("localhost", kind=kind)
        options += ["--tls-cert", str(pair.cert), "--tls-key", str(pair.key)]
    with run_server("service:handle", *options, cwd=tmp_path) as running:
        yield running


def test_testssl_finds_nothing(server: Server, tmp_path: Path) -> None:
    need("testssl")
    report = tmp_path / "report.json"
    options = ["--quiet", "--color", "0", "--warnings", "off", "--severity", "LOW", "--jsonfile", str(report)]
    # Protocols, categories of ciphers, forward secrecy, preferences, defaults, and vulnerabilities.
    command = ["testssl", *options, "-p", "-s", "-f", "-P", "-S", "-U", f"localhost:{server.port}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as scan:
        try:
            scan.wait(900)
        finally:
            scan.kill()
    findings = json.loads(report.read_text())
    assert any(each["id"].startswith("cert_chain_of_trust") for each in findings), "it has looked at nothing"
    wrong = [each for each in findings if each["severity"] in ("LOW", "MEDIUM", "HIGH", "CRITICAL")]
    assert [each for each in wrong if not ABOUT_CERTIFICATES.match(each["id"])] == []


def test_sslyze_finds_the_configuration_of_mozilla(server: Server, profile: str) -> None:
    """Debian has no package of it: pip install sslyze, in an environment that is in PATH."""
    if shutil.which("sslyze") is None:
        pytest.skip("sslyze is not installed")
    command = ["sslyze", f"--mozilla_config={profile}", f"localhost:{server.port}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    assert "COMPLIANCE AGAINST TLS CONFIGURATION" in done.stdout, done.stdout + done.stderr
    findings = set(re.findall(r"^ +\* (\w+): ", done.stdout.split("COMPLIANCE AGAINST")[1], re.M))
    assert findings - SSLYZE_ABOUT_CERTIFICATES == set()
