"""The place of the control socket cannot be used: a default one costs a warning, and a foreign file is left alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.servers import ECHO
from helpers.support import need, need_root, slow

from prefork.testing import run_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(ECHO)
    (tmp_path / "file").touch()
    (tmp_path / ("a" * 120)).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    return tmp_path


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", "file/prefork: not a directory"),
        slow("link", "link/prefork: no such file or directory"),
        slow("a" * 120, "file name too long"),
        slow("/nonexistent", "/nonexistent/prefork: no such file or directory"),
    ],
)
def test_without_a_place_for_its_control_socket_a_server_says_so_once_and_serves(
    place: str, reason: str, folder: Path
) -> None:
    env = {"XDG_RUNTIME_DIR": str(folder / place), "HOME": "/nonexistent"}
    with run_server("service:handle", "-w", "1", "--control", "", cwd=folder, env=env) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(b"hello\n")
            assert client.recv(10) == b"hello\n"
        (line,) = [line for line in server.stderr().splitlines() if "no control socket" in line]
        assert " warning supervisor" in line
        assert reason in line
        assert line.endswith("(give a path with --control, or --control off)")
        assert server.stop() == 0
    assert not (folder / "elsewhere").exists()


@pytest.mark.slow
def test_on_a_file_system_that_cannot_be_written_a_server_says_so_once_and_serves(folder: Path) -> None:
    need_root()
    need("unshare", "mount")
    (folder / "run").mkdir()
    mount = f'mount -t tmpfs -o ro none {folder}/run && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", mount, "sh")
    env = {"XDG_RUNTIME_DIR": str(folder / "run")}
    with run_server("service:handle", "-w", "1", "--control", "", cwd=folder, env=env, prefix=prefix) as server:
        assert server.stderr().count("/run/prefork: read-only file system (give a path with --control") == 1
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("kind", "reason"), [("file", "it is not a socket; remove it yourself"), slow("live", "address already in use")]
)
def test_what_is_at_the_path_of_a_control_socket_and_not_a_stale_one_is_left_alone(
    kind: str, reason: str, folder: Path
) -> None:
    path = folder / "control"
    with socket.socket(socket.AF_UNIX) as other:
        if kind == "file":
            path.write_text("precious")
        else:
            other.bind(str(path))
            other.listen()
        inode = os.stat(path).st_ino
        command = [sys.executable, "-m", "prefork", "serve", "service:handle", "-w", "1", "-b", "127.0.0.1:0"]
        done = subprocess.run(
            [*command, "--control", "control"], cwd=folder, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 4
        assert done.stderr.splitlines()[-1].startswith("prefork: --control control: ")
        assert reason in done.stderr.splitlines()[-1]
        assert os.stat(path).st_ino == inode
