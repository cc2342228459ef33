"""A port below 1024 that was bound by a right that the server does not have: reloads and upgrades need none."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.servers import ECHO
from helpers.support import need, need_root, rounds, run_script

#: Binds port 443 as root of a network of its own, and serves it by a user without capabilities there.
DRIVER = r"""
import json, os, socket, subprocess, sys
from pathlib import Path
from helpers.servers import answer, asking, command, echo
from helpers.support import wait_until
from prefork.testing import run_server

subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
folder, address = Path.cwd(), ("127.0.0.1", 443)

def listening():
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return [(line[1], line[9]) for line in lines if line[3] == "0A"]

unprivileged = ("unshare", "--user", "--map-user=1234", "--map-group=1234")
refused = "import socket; socket.create_server(('127.0.0.1', 80))"
assert b"PermissionError" in subprocess.run([*unprivileged, sys.executable, "-c", refused], capture_output=True).stderr
# Root's part: it binds the port, and becomes the server without the right to do it again.
bind = (
    "import os, socket, sys\n"
    "sock = socket.create_server(('127.0.0.1', 443))\n"
    "os.dup2(sock.fileno(), 50)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
options = ("-w", "1", "--control", str(folder / "control"))
with run_server("service:handle", *options, bind="fd:50", prefix=(sys.executable, "-c", bind, *unprivileged)) as server:
    (before,) = listening()
    for turn in range(ROUNDS):
        told = answer(asking(folder, {"command": "reload"}))
        assert told["ok"], told
        assert echo(address) == b"hello\n"
    assert command(folder, "upgrade").returncode == 0
    assert echo(address) == b"hello\n"
    assert listening() == [before]
    command(folder, "stop")
print("well")
"""


@pytest.mark.slow
@rounds(3, 100)
def test_a_low_port_is_served_on_without_the_right_to_bind_it(tmp_path: Path, rounds: int) -> None:
    need_root()
    need("unshare", "ip")
    (tmp_path / "service.py").write_text(ECHO)
    code = DRIVER.replace("ROUNDS", str(rounds))
    helpers = str(Path(__file__).parents[1])
    done = run_script(code, prefix=("unshare", "--net"), cwd=tmp_path, env={"PYTHONPATH": helpers}, deadline=55)
    assert done.stdout == "well\n", done.stderr
