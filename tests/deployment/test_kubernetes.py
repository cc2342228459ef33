"""The manifests of deploy/kubernetes: Kubernetes' schemas accept them, and the container does what the kubelet asks."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import trustme
import yaml
from helpers import dockerfile
from helpers.deployment import DEPLOY
from helpers.support import free_port, wait_until

from prefork.config import Settings
from prefork.core import time_limits
from prefork.testing import run_server

MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "app.yaml").read_text()))
#: The oldest and the newest release that is checked.
VERSIONS = ("1.30", "1.34")
ECHO = "async def handle(stream):\n    async for line in stream: stream.write(line)\n"


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [each for each in MANIFESTS if each["kind"] == kind]
    return dict(found["spec"])


def pod() -> dict[str, Any]:
    return dict(manifest("Deployment")["template"]["spec"])


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    return dict(found)


def option(name: str) -> str:
    (found,) = [word.partition("=")[2] for word in container()["args"] if word.startswith(f"--{name}=")]
    return str(found)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_of_kubernetes_accept_the_manifests(version: str) -> None:
    for each in MANIFESTS:
        kubernetes_validate.validate(each, version, strict=True)
    wrong = {**MANIFESTS[0], "spec": {**MANIFESTS[0]["spec"], "replica": 3}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_the_kubelet_waits_as_long_as_a_stop_may_take() -> None:
    delay, drain, stop = (float(option(name)) for name in ("drain-delay", "drain-timeout", "stop-timeout"))
    longest = delay + time_limits.worker_stop_timeout(drain, stop)
    assert longest + 5 <= pod()["terminationGracePeriodSeconds"] <= longest + 15
    probe = container()["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > Settings().boot_timeout


def test_names_ports_and_users_agree() -> None:
    labels = manifest("Deployment")["template"]["metadata"]["labels"]
    ports = {each["name"]: each["containerPort"] for each in container()["ports"]}
    assert option("bind") == f":{ports['app']}"
    assert option("metrics") == f"0.0.0.0:{ports['metrics']}"
    for selector in (
        manifest("Deployment")["selector"]["matchLabels"],
        manifest("Service")["selector"],
        manifest("PodDisruptionBudget")["selector"]["matchLabels"],
        manifest("NetworkPolicy")["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    (service,) = manifest("Service")["ports"]
    assert service["targetPort"] in ports
    assert {each["port"] for rule in manifest("NetworkPolicy")["ingress"] for each in rule["ports"]} == set(ports)
    monitor = yaml.safe_load((DEPLOY / "kubernetes" / "podmonitor.yaml").read_text())["spec"]
    assert monitor["podMetricsEndpoints"][0]["port"] in ports
    *_, image = dockerfile.read(DEPLOY / "docker" / "Dockerfile")
    user = f"{pod()['securityContext']['runAsUser']}:{pod()['securityContext']['runAsGroup']}"
    assert user == image.last("USER").text


def test_the_certificate_of_the_secret_is_where_the_options_name_it() -> None:
    (mount,) = [each for each in container()["volumeMounts"] if each["name"] == "tls"]
    # The keys that a secret of the type kubernetes.io/tls has.
    assert option("tls-cert") == f"{mount['mountPath']}/tls.crt"
    assert option("tls-key") == f"{mount['mountPath']}/tls.key"


class Mounted:
    """A volume as the kubelet mounts a secret: links to files behind the link `..data`, which is exchanged at once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        folder.mkdir()

    def put(self, cert: str, key: str) -> None:
        self._number += 1
        data = self._folder / f"..2026_11_27_{self._number}"
        data.mkdir()
        for source, name in ((cert, "tls.crt"), (key, "tls.key")):
            shutil.copy(source, data / name)
            if self._number == 1:
                (self._folder / name).symlink_to(f"..data/{name}")
        (self._folder / "..data_tmp").symlink_to(data.name)
        os.replace(self._folder / "..data_tmp", self._folder / "..data")


def probe(port: int, name: str) -> int:
    """Return the status of the HTTP request that a probe makes, or 0 if it fails, as it may on a busy machine."""
    what = container()[name]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=what["timeoutSeconds"])
    try:
        # The kubelet sends the pod's address.
        connection.request("GET", what["httpGet"]["path"], headers={"Host": f"127.0.0.1:{port}"})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def ask(port: int, ca: str) -> bytes:
    """Say hello over TLS, and return what comes back; b"" if the certificate is of another authority."""
    context = ssl.create_default_context(cafile=ca)
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        try:
            sock = context.wrap_socket(plain, server_hostname="localhost")
        except ssl.SSLCertVerificationError:
            return b""
        with sock:
            sock.sendall(b"hello\n")
            return sock.recv(100)


@pytest.mark.slow
def test_the_container_answers_the_probes_and_stops_in_order(tmp_path: Path, certs: dict[str, str]) -> None:
    """The arguments of the manifest, with other ports and a delay of 5 s, and what the kubelet does."""
    volume = Mounted(tmp_path / "tls")
    volume.put(certs["cert"], certs["key"])
    renewed = trustme.CA()
    renewed.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    leaf = renewed.issue_cert("localhost")
    leaf.private_key_pem.write_to_path(str(tmp_path / "new.key"))
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "new.pem"))
    (tmp_path / "app.py").write_text(ECHO)
    port, metrics = free_port(), free_port()
    replaced = {
        "--bind=:9000": f"--bind=127.0.0.1:{port}",
        "--metrics=0.0.0.0:9100": f"--metrics=127.0.0.1:{metrics}",
        "--drain-delay=15": "--drain-delay=5",
    }
    words = [replaced.get(word, word).replace("/etc/tls", str(tmp_path / "tls")) for word in container()["args"]]
    bind, *options = words
    with run_server("app:handle", *options, bind=bind.partition("=")[2], cwd=tmp_path) as server:
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            wait_until(lambda name=name: probe(metrics, name) == 200)
        assert ask(port, certs["ca"]) == b"hello\n"
        volume.put(str(tmp_path / "new.pem"), str(tmp_path / "new.key"))
        wait_until(lambda: ask(port, str(tmp_path / "ca.pem")) == b"hello\n", 30)
        assert "TLS renewed without a reload" in server.stderr()
        server.signal(signal.SIGTERM)
        wait_until(lambda: probe(metrics, "readinessProbe") == 503)
        assert ask(port, str(tmp_path / "ca.pem")) == b"hello\n", "the endpoint is still known somewhere"
        wait_until(lambda: probe(metrics, "livenessProbe") == 200)
        assert server.wait() == 0
