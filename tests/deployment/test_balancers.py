"""The files of deploy/haproxy and deploy/nginx: the programs accept them, and prefork is reached through them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from helpers.deployment import DEPLOY
from helpers.support import free_port, need, need_root, run_script


@pytest.mark.parametrize("names", [("haproxy.cfg",), ("haproxy.cfg", "terminate.cfg")], ids="+".join)
def test_haproxy_accepts_its_files(names: tuple[str, ...], tmp_path: Path, certs: dict[str, str]) -> None:
    need("haproxy")
    pem(tmp_path, certs)
    command = ["haproxy", "-c"]
    for name in names:
        text = (DEPLOY / "haproxy" / name).read_text().replace("/etc/haproxy/certs/", f"{tmp_path}/site.pem")
        (tmp_path / name).write_text(text)
        command += ["-f", str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_nginx_accepts_its_file(tmp_path: Path) -> None:
    need("nginx")
    # It binds the address, which is none of this machine.
    text = (DEPLOY / "nginx" / "nginx.conf").read_text().replace("10.0.0.10:9000", f"127.0.0.1:{free_port()}")
    for path in ("/run/nginx.pid", "/var/log/nginx/error.log"):
        text = text.replace(path, str(tmp_path / Path(path).name))
    (tmp_path / "nginx.conf").write_text(text)
    done = subprocess.run(["nginx", "-t", "-c", tmp_path / "nginx.conf"], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


def pem(folder: Path, certs: dict[str, str]) -> Path:
    """Write certificate and key into one file, as HAProxy wants them."""
    path = folder / "site.pem"
    path.write_text("".join(Path(certs[name]).read_text() for name in ("cert", "key")))
    return path


@pytest.mark.slow
@pytest.mark.deadline(120)
@pytest.mark.parametrize("program", ["haproxy", "nginx"])
def test_connections_arrive_and_none_is_lost_when_a_machine_stops(
    program: str, tmp_path: Path, certs: dict[str, str]
) -> None:
    """The file as it is, in a network of its own: the true peer, TLS ended in front, reloads, a stop, a return."""
    need(program, "unshare", "ip", "curl")
    need_root()
    script = Path(__file__).with_name("in_network.py")
    arguments = [str(tmp_path), str(pem(tmp_path, certs)), program, certs["ca"]]
    done = run_script(script, *arguments, prefix=("unshare", "--mount", "--net"), deadline=110)
    assert done.stdout == "well\n", done.stderr
