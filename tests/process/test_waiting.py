"""Commands that wait for the end of what they ask for: what they say meanwhile, and in the end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.servers import ECHO, asking, command, serving, state
from helpers.support import wait_until

from prefork.system.control_client import request as exchange
from prefork.testing import Server, run_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(ECHO)
    return tmp_path


def connected(server: Server) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    sock.sendall(b"hello\n")
    assert sock.recv(10) == b"hello\n"
    return sock


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "prefork", *words, "--control", str(folder / "control")]
    return subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines_of(sock: socket.socket) -> list[dict[str, Any]]:
    with sock, sock.makefile("rb") as file:
        return [json.loads(line) for line in file]


def test_stop_waits_and_says_how_the_connections_ended(folder: Path) -> None:
    with serving(folder, "--drain-timeout", "2.5") as server:
        ends, stays = connected(server), connected(server)
        stop = start(folder, "stop")
        wait_until(lambda: state(folder) == "stopping")
        watched = asking(folder, {"command": "stop", "wait": True, "progress": True})
        # It is told how far the stop is, and is no abort.
        first = watched.recv(65536)
        assert json.loads(first.split(b"\n")[0])["progress"]["text"] == "2 connections open"
        ends.close()
        out, err = stop.communicate(timeout=60)
        assert (stop.returncode, out.partition(", in ")[0]) == (0, "stopped: 1 connection closed, 1 aborted")
        assert "1/2 1 connection open, " in err
        # When it returns, the process has ended.
        assert server._process.wait(0.5) == 0
        assert server.stderr().count("stopping") == 1
        *reports, reply = lines_of(watched)
        assert {"done": 1, "total": 2} in [
            {name: each["progress"][name] for name in ("done", "total")} for each in reports
        ]
        assert (reply["ok"], reply["closed"], reply["aborted"], reply["pid"]) == (True, 1, 1, server.pid)
        with pytest.raises(ConnectionResetError):
            stays.recv(1)
        stays.close()


@pytest.mark.slow
def test_a_stop_at_once_ends_one_that_waits(folder: Path) -> None:
    with serving(folder) as server:
        sock = connected(server)
        stop = start(folder, "stop", "--json")
        wait_until(lambda: state(folder) == "stopping")
        assert command(folder, "stop", "--no-wait").returncode == 0
        done = command(folder, "stop", "--now")
        assert (done.returncode, done.stdout.partition(", in ")[0]) == (0, "stopped: 0 connections closed, 1 aborted")
        told = json.loads(stop.communicate(timeout=60)[0])
        assert (told["closed"], told["aborted"]) == (0, 1)
        assert server.wait() == 0
        sock.close()


@pytest.mark.slow
def test_a_signal_after_a_command_to_stop_is_the_first_one(folder: Path) -> None:
    """As from a service manager whose ExecStop= is `prefork stop`."""
    with serving(folder, workers=1) as server:
        sock = connected(server)
        assert command(folder, "stop", "--no-wait").returncode == 0
        server.signal(signal.SIGTERM)
        wait_until(lambda: state(folder) == "stopping")
        sock.sendall(b"still\n")
        assert sock.recv(10) == b"still\n"
        sock.close()
        assert server.wait() == 0
        assert "at once" not in server.stderr()


@pytest.mark.slow
def test_a_reload_says_which_worker_it_waits_for(folder: Path) -> None:
    with serving(folder) as server:
        (folder / "service.py").write_text(f"import time\ntime.sleep(1.3)\n{ECHO}")
        told: list[dict[str, Any]] = []

        def on_progress(line: bytes) -> bool:
            value = json.loads(line)
            told.append(value)
            return "progress" in value

        answer = exchange(str(folder / "control"), b'{"command": "reload", "progress": true}\n', 30, None, on_progress)
        assert json.loads(answer)["generation"] == 1
        reports = [each["progress"] for each in told[:-1]]
        assert {(each["done"], each["total"]) for each in reports} >= {(0, 2), (1, 2)}
        assert any(each["text"].startswith("worker 1 (pid ") and each["text"].endswith(") starts") for each in reports)
        assert server.stop() == 0


def test_a_reload_says_what_it_has_changed_and_what_stays(folder: Path) -> None:
    settings = folder / "prefork.toml"
    settings.write_text(f'bind = ["127.0.0.1:0", "unix:{folder}/one"]\nworkers = 1\n')
    options = ("--control", str(folder / "control"), "--config", str(settings))
    with run_server("service:handle", *options, bind=[], cwd=folder) as server:
        with connected(server) as sock:
            settings.write_text(f'bind = ["127.0.0.1:0", "unix:{folder}/two"]\nworkers = 1\n')
            done = command(folder, "reload")
            assert done.stdout.splitlines() == [
                "reloaded: every worker is of generation 1",
                f"listening on unix:{folder}/two (unix) too; not listening on unix:{folder}/one (unix) any more",
                "1 connection stays on 1 old worker until it ends",
            ]
            log = [line.partition("]: ")[2] for line in server.stderr().splitlines()]
            assert set(done.stdout.splitlines()) <= set(log)
            settings.write_text(f"{settings.read_text()}reload_drain_timeout = 300\n")
            assert command(folder, "reload").stdout.splitlines()[1:] == [
                "1 connection stays on 1 old worker until it ends"
            ]
            sock.sendall(b"still\n")
            assert sock.recv(10) == b"still\n"
        assert server.stop() == 0


@pytest.mark.slow
def test_a_reload_calls_off_one_that_is_stuck(folder: Path) -> None:
    with serving(folder, workers=1) as server:
        (folder / "service.py").write_text("import time\ntime.sleep(600)\n")
        stuck = start(folder, "reload")
        wait_until(lambda: len(server.worker_pids()) == 2)
        assert json.loads(command(folder, "scale", "2", "--json").stdout)["queued"] is True
        (folder / "service.py").write_text(ECHO)
        done = command(folder, "reload")
        assert (done.returncode, done.stdout) == (0, "reloaded: every worker is of generation 2\n")
        assert stuck.communicate(timeout=60)[0] == "reloaded: every worker is of generation 2\n"
        assert "is not ready after 5 s: called off by the next reload" in server.stderr()
        wait_until(lambda: len(server.worker_pids()) == 2)
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.deadline(120)
def test_a_server_has_its_sockets_for_itself_a_while_after_an_upgrade(folder: Path) -> None:
    """A connection stays with the old supervisor, which would keep a removed address listening."""
    settings = folder / "prefork.toml"
    settings.write_text(f'bind = ["127.0.0.1:0", "unix:{folder}/one"]\nworkers = 1\n')
    options = ("--control", str(folder / "control"), "--config", str(settings), "--drain-timeout", "1")
    with run_server("service:handle", *options, bind=[], cwd=folder) as server:
        with connected(server) as sock:
            settings.write_text('bind = ["127.0.0.1:0"]\nworkers = 1\n')
            done = command(folder, "upgrade")
            assert done.stdout.splitlines()[1] == "1 connection stays on 1 old worker until it ends"
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(f"{folder}/one")
            wait_until(lambda: not (folder / "one").exists(), 45, "the end of the removed address")
            sock.sendall(b"still\n")
            assert sock.recv(10) == b"still\n"
            assert server._process.poll() is None
            assert command(folder, "stop").returncode == 0
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        assert server.wait() == 0
