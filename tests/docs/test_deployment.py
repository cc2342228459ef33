"""The files that the deployment page shows are accepted by the programs that read them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from helpers.support import need

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()


def shown_files() -> dict[str, str]:
    """Return the files that begin with a comment that names their path, by name."""
    blocks = re.findall(r"```\w*\n(# /etc/\S+\n.*?)```", PAGE, re.S)
    return {Path(block.split("\n")[0].removeprefix("# ")).name: block for block in blocks}


def verify_units(folder: Path, files: dict[str, str]) -> subprocess.CompletedProcess[str]:
    units = [folder / name for name in ("app.service", "app.socket")]
    for unit in units:
        # systemd-analyze looks for the program; the one that is here has the same command line.
        text = files[unit.name].replace("/opt/app/venv/bin/prefork", str(Path(sys.executable).with_name("prefork")))
        unit.write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *map(str, units)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50)


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    need("systemd-analyze")
    done = verify_units(tmp_path, shown_files())
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_would_reject_a_wrong_unit(tmp_path: Path) -> None:
    need("systemd-analyze")
    files = shown_files()
    files["app.service"] = files["app.service"].replace("Type=notify\n", "Type=notified\n")
    assert "notified" in verify_units(tmp_path, files).stderr


def test_the_service_takes_the_sockets_of_the_socket_unit() -> None:
    files = shown_files()
    name = re.search(r"^FileDescriptorName=(\w+)$", files["app.socket"], re.M)
    assert name is not None
    assert f"--bind systemd:{name[1]} " in files["app.service"]


def test_timeouts_of_the_service_unit_contain_preforks_own() -> None:
    from prefork.config import Settings

    unit = dict(re.findall(r"^(\w+)=(.*)$", shown_files()["app.service"], re.M))
    assert int(unit["TimeoutStartSec"]) > Settings().boot_timeout
    assert int(unit["TimeoutStopSec"]) >= Settings().drain_timeout + 10


def test_the_dockerfile_starts_the_server_without_a_shell() -> None:
    (dockerfile,) = re.findall(r"```dockerfile\n(.*?)```", PAGE, re.S)
    commands = [json.loads(each) for each in re.findall(r"^(?:ENTRYPOINT|HEALTHCHECK CMD) (.*)$", dockerfile, re.M)]
    assert [command[:2] for command in commands] == [["prefork", "status"], ["prefork", "serve"]]
    # A shell as process 1 would get TERM in place of the supervisor.
    assert all(isinstance(command, list) for command in commands)
