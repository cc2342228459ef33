"""The control socket: what a running server tells and does, and what it makes of clients that mean harm."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.proc import cpu_share, open_files
from helpers.servers import ECHO, Asked, answer, asking, command, exhaust_supervisor, serving, status
from helpers.support import need, need_root, run_script, wait_until
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.control_protocol import COMMANDS, BadRequest, Request, decode_request, encode_request
from prefork.implementation import describe_core
from prefork.testing import Server, run_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(ECHO)
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as running:
        yield running


def test_status_agrees_with_what_clients_see(server: Server, folder: Path) -> None:
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(7)]
    for sock in clients:
        sock.sendall(b"hello\n")
        assert sock.recv(10) == b"hello\n"
    told = status(folder)
    assert told["pid"] == server.pid
    assert told["listeners"] == [f"127.0.0.1:{server.port} (tcp)"]
    assert {worker["pid"] for worker in told["workers"]} == set(server.worker_pids())
    assert sum(worker["open"] for worker in told["workers"]) == 7
    assert sum(worker["accepted"] for worker in told["workers"]) == 7
    assert all(worker["state"] == "ready" and worker["heartbeat_age"] < 10 for worker in told["workers"])
    for sock in clients:
        sock.close()
    wait_until(lambda: sum(worker["open"] for worker in status(folder)["workers"]) == 0)
    text = command(folder, "status").stdout.splitlines()
    assert text[0].startswith(f"prefork 0.1.0 of service:handle, supervisor {server.pid}, serving, generation 0, up ")
    assert text[0].endswith(f"streams {describe_core()}")
    assert text[1] == f"listening on 127.0.0.1:{server.port} (tcp), 0 of 1024 waiting"
    assert text[2] == "connections: 7 accepted = 0 open + 7 closed (7 done)"
    assert text[4].split()[:7] == ["SLOT", "PID", "GEN", "STATE", "AGE", "OPEN", "SERVED"]
    assert [line.split()[0] for line in text[5:]] == ["0", "1"]


def test_reload_waits_and_says_whether_it_worked(server: Server, folder: Path) -> None:
    done = command(folder, "reload")
    assert (done.returncode, done.stdout) == (0, "reloaded: every worker is of generation 1\n")
    assert {worker["generation"] for worker in status(folder)["workers"] if worker["state"] == "ready"} == {1}
    (folder / "service.py").write_text("raise RuntimeError('no database')")
    done = command(folder, "reload")
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "reload failed, the running workers stay" in line
    assert "RuntimeError: no database" in line
    assert len(server.worker_pids()) >= 2


def test_scale_changes_the_number_of_workers(server: Server, folder: Path) -> None:
    assert command(folder, "scale", "4").stdout == "scaled: 4 workers\n"
    wait_until(lambda: len(server.worker_pids()) == 4)
    assert command(folder, "scale", "1").stdout == "scaled: 1 worker\n"
    wait_until(lambda: len(server.worker_pids()) == 1)
    for wrong in ("0", "-1", "99999"):
        done = command(folder, "scale", "--", wrong)
        assert done.returncode in (2, 3)
        assert len(done.stderr.splitlines()) == 1
    assert len(server.worker_pids()) == 1


def test_stop_ends_the_server(server: Server, folder: Path) -> None:
    path = folder / "control"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert command(folder, "stop", "--no-wait").stdout == f"stopping: supervisor {server.pid}\n"
    assert server.wait() == 0
    assert not path.exists()
    done = command(folder, "status")
    assert done.returncode == 6
    assert "no such file" in done.stderr
    done = command(folder, "reload", "--json")
    assert (done.returncode, done.stderr) == (6, "")
    told = json.loads(done.stdout)
    assert (told["ok"], told["running"]) == (False, False)
    assert "no such file" in told["error"]


def test_without_a_path_the_one_server_is_found(folder: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(folder)}
    nothing = command(folder, "list", env=env)
    assert (nothing.returncode, nothing.stdout) == (6, "")
    assert "no running prefork found" in nothing.stderr
    # A supervisor that was killed has left its socket.
    (folder / "prefork").mkdir(mode=0o700)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(folder / "prefork" / "1.sock"))
    stale.close()
    with run_server("service:handle", "-w", "1", "--control", "", cwd=folder, env=env) as first:
        assert f"supervisor {first.pid}" in command(folder, "status", env=env).stdout
        assert stat.S_IMODE((folder / "prefork").stat().st_mode) == 0o700
        with run_server("service:handle", "-w", "1", "--control", "", cwd=folder, env=env) as second:
            done = command(folder, "status", env=env)
            assert done.returncode == 2
            head, *lines = done.stderr.splitlines()
            assert head == "prefork: several servers run; choose one by --control PATH:"
            for each in (first, second):
                start = f"prefork:     --control {folder}/prefork/{each.pid}.sock  pid {each.pid}  serving  "
                assert [line.endswith(f"  127.0.0.1:{each.port} (tcp)") for line in lines if line.startswith(start)]
            told = json.loads(command(folder, "list", "--json", env=env).stdout)
            assert {each["pid"] for each in told["servers"]} == {first.pid, second.pid}
            (folder / "prefork.toml").write_text('control = "off"')
            done = command(folder, "stop", env=env)
            assert done.returncode == 2
            assert done.stderr.startswith("prefork: --control off (in prefork.toml): the server of these settings has")
            (folder / "prefork.toml").unlink()
            assert second.stop() == 0
        assert first.stop() == 0
    assert list((folder / "prefork").iterdir()) == []


def test_a_folder_that_others_may_write_is_not_used(folder: Path) -> None:
    (folder / "prefork").mkdir(mode=0o777)
    (folder / "prefork").chmod(0o777)
    env = {"XDG_RUNTIME_DIR": str(folder)}
    with run_server("service:handle", "-w", "1", "--control", "", cwd=folder, env=env) as server:
        assert "no control socket" in server.stderr()
        assert server.stop() == 0


def test_rubbish_is_answered_and_changes_nothing(server: Server, folder: Path) -> None:
    wrong = [b"rubbish\n", b"{}\n", b'{"command": "dance"}\n', b"[1]\n", b"null\n"]
    for words in [*wrong, b'{"command": "scale", "workers": "x"}\n']:
        assert answer(asking(folder, words))["ok"] is False, words
        assert status(folder)["state"] == "serving"


def test_a_deeply_nested_request_is_refused(server: Server, folder: Path) -> None:
    for depth in (500, 1000, 30000):
        reply = answer(asking(folder, b"[" * depth + b"\n"))
        assert reply["ok"] is False
    assert status(folder)["state"] == "serving"
    assert "Traceback" not in server.stderr()


def test_the_last_descriptors_are_kept_for_a_client(server: Server, folder: Path) -> None:
    need("prlimit")
    with contextlib.ExitStack() as stack:
        exhaust_supervisor(server, folder, stack)
        for _ in range(3):
            assert status(folder)["state"] == "serving"
        assert cpu_share(server.pid) < 0.3, "it tries again and again"
    assert status(folder)["state"] == "serving"


def test_clients_waiting_for_a_reload_do_not_block_other_commands(server: Server, folder: Path) -> None:
    (folder / "service.py").write_text("import os, time\nwhile os.path.exists('wait'): time.sleep(0.01)\n" + ECHO)
    (folder / "wait").touch()
    waiting = [Asked(folder, {"command": "reload"}) for _ in range(24)]
    assert status(folder)["reloading"] is True
    (folder / "wait").unlink()
    assert {each.reply()["ok"] for each in waiting} == {True}


def test_settings_that_are_wrong_do_not_keep_commands_from_the_server(folder: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(folder)}
    with run_server("service:handle", "--control", "", cwd=folder, env=env):
        (folder / "prefork.toml").write_text("workrs = 1\n")
        done = command(folder, "status", env=env)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_clients_that_say_too_much_or_nothing_cost_nothing(server: Server, folder: Path) -> None:
    silent = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for sock in silent:
        sock.setblocking(False)
        sock.connect_ex(str(folder / "control"))
    # They are let go after a few seconds, and then there is room for the next.
    started = time.monotonic()
    assert status(folder)["state"] == "serving"
    assert time.monotonic() - started < 25
    for sock in silent:
        sock.close()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(folder / "control"))
        try:
            sock.sendall(b"x" * 1_000_000)
            assert b"too long" in sock.recv(1000)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert status(folder)["state"] == "serving"
    assert len(os.listdir(f"/proc/{server.pid}/fd")) < 70


def test_other_users_are_turned_away(server: Server, folder: Path) -> None:
    need_root()
    # As if its owner had opened the file to every user.
    (folder / "control").chmod(0o666)
    folder.chmod(0o755)
    code = """
import os, socket, sys
os.chdir(sys.argv[1])
os.setresuid(65534, 65534, 65534)
with socket.socket(socket.AF_UNIX) as sock:
    sock.settimeout(10)
    sock.connect("control")
    try:
        sock.sendall(b'{"command": "stop"}\\n')
        print(sock.recv(100))
    except OSError:
        print(b"")
"""
    done = run_script(code, str(folder))
    assert done.stdout == "b''\n", done.stderr
    assert status(folder)["state"] == "serving"


def test_no_worker_holds_the_control_socket(server: Server, folder: Path) -> None:
    listening = {
        line.split()[6]
        for line in Path("/proc/net/unix").read_text().splitlines()
        if line.endswith(str(folder / "control"))
    }
    assert listening
    for pid in server.worker_pids():
        held = set(open_files(pid).values())
        assert not held & {f"socket:[{inode}]" for inode in listening}


@given(st.sampled_from(COMMANDS), st.integers(-5, 5000), st.booleans(), st.booleans(), st.booleans())
def test_requests_survive_the_wire(name: str, workers: int, at_once: bool, wait: bool, progress: bool) -> None:
    request = Request(name, workers, at_once, workers, wait, progress)
    assert decode_request(encode_request(request).rstrip(b"\n")) == request


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(line: bytes) -> None:
    try:
        decode_request(line)
    except BadRequest as exc:
        assert str(exc)
