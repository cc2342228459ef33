"""The pidfile: only one supervisor holds it, and its content is never trusted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.proc import open_files
from helpers.support import need, need_root, run_script, wait_until

from prefork.errors import ConfigError
from prefork.system.pidfile import claim
from prefork.testing import run_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text("async def handle(stream): ...\n")
    return tmp_path


def start(folder: Path, path: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prefork", "serve", "service:handle", "--bind", "127.0.0.1:0", "--control", "off"]
    return subprocess.run(
        [*command, "--pidfile", path, *options], cwd=folder, capture_output=True, text=True, timeout=30
    )


def test_the_file_holds_the_pid_while_the_server_runs_and_a_second_server_is_rejected(folder: Path) -> None:
    path = folder / "pid"
    with run_server("service:handle", "--pidfile", "pid", "-w", "1", cwd=folder) as server:
        assert path.read_text() == f"{server.pid}\n"
        assert path.stat().st_mode & 0o022 == 0
        done = start(folder, str(path))
        assert done.returncode == 2
        assert done.stderr == f"prefork: --pidfile {path}: another supervisor has it ({server.pid})\n"
        assert path.read_text() == f"{server.pid}\n"
        assert server.stop() == 0
    assert not path.exists()


def test_a_stale_pidfile_is_taken_over_and_no_process_is_signalled(folder: Path) -> None:
    path = folder / "pid"
    with subprocess.Popen(["sleep", "60"]) as bystander:
        # The pid belongs to another process by now.
        path.write_text(f"{bystander.pid}\n")
        with run_server("service:handle", "--pidfile", str(path), "-w", "1", cwd=folder) as server:
            assert path.read_text() == f"{server.pid}\n"
            server.signal(signal.SIGKILL)
            server.wait()
        with run_server("service:handle", "--pidfile", str(path), "-w", "1", cwd=folder) as server:
            assert path.read_text() == f"{server.pid}\n"
        assert bystander.poll() is None
        bystander.kill()


def test_a_replaced_pidfile_is_not_removed(folder: Path) -> None:
    path = folder / "pid"
    with run_server("service:handle", "--pidfile", str(path), "-w", "1", cwd=folder) as server:
        path.unlink()
        path.write_text("another process's\n")
        assert server.stop() == 0
    assert path.read_text() == "another process's\n"


def test_a_file_with_other_text_is_rejected(folder: Path) -> None:
    path = folder / "notes.txt"
    path.write_text("dear diary\n")
    done = start(folder, str(path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"prefork: --pidfile {path}: it does not hold a pid")
    assert path.read_text() == "dear diary\n"


@pytest.mark.parametrize(
    "kind", ["folder", "link", *(pytest.param(each, marks=pytest.mark.slow) for each in ("fifo", "missing folder"))]
)
def test_a_path_that_is_not_a_regular_file_is_rejected(folder: Path, kind: str) -> None:
    path = folder / "pid"
    victim = folder / "victim"
    victim.write_text("precious")
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = folder / "nowhere" / "pid"
    done = start(folder, str(path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"prefork: --pidfile {path}: ")
    assert victim.read_text() == "precious"


def test_workers_do_not_hold_the_lock(folder: Path) -> None:
    path = folder / "pid"
    with run_server("service:handle", "--pidfile", str(path), "-w", "2", cwd=folder) as server:
        for pid in server.worker_pids():
            links = open_files(pid).values()
            assert str(path) not in links


def test_of_several_servers_that_start_at_once_one_wins(folder: Path) -> None:
    path = str(folder / "pid")
    starters = [
        subprocess.Popen(
            [sys.executable, "-m", "prefork", "serve", "service:handle", "--control", "off", "-w", "1"]
            + ["--bind", "127.0.0.1:0", "--pidfile", path],
            cwd=folder,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        for _ in range(6)
    ]
    try:
        wait_until(lambda: sum(each.poll() is not None for each in starters) == 5, 30)
        (winner,) = [each for each in starters if each.poll() is None]
        wait_until(lambda: Path(path).read_text() == f"{winner.pid}\n")
        assert {each.returncode for each in starters if each is not winner} == {2}
    finally:
        for each in starters:
            each.terminate()
        for each in starters:
            each.communicate(timeout=30)


def test_a_file_removed_between_opening_and_locking_is_created_again(tmp_path: Path) -> None:
    """The previous owner removes the file while it releases the lock."""
    path = str(tmp_path / "pid")
    before = claim(path)
    with pytest.raises(ConfigError):
        claim(path)
    before.remove()
    after = claim(path)
    assert Path(path).read_text() == f"{os.getpid()}\n"
    before.close()
    after.remove()
    assert not Path(path).exists()


def test_a_full_disk_costs_only_the_pid(folder: Path) -> None:
    need_root()
    need("unshare", "mount")
    code = """
import subprocess, sys
from pathlib import Path
from prefork.testing import run_server
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", "/mnt"], check=True)
try:
    Path("/mnt/fill").write_bytes(b"x" * 1_000_000)
except OSError:
    pass
with run_server("service:handle", "--pidfile", "/mnt/pid", "-w", "1") as server:
    print(repr(Path("/mnt/pid").read_text()), server.stop())
"""
    done = run_script(code, prefix=("unshare", "-n", "-m"), cwd=folder)
    assert done.stdout == "'' 0\n", done.stderr
