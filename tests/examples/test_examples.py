"""Run each example and talk to it with real clients."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from helpers.support import need, wait_until

from prefork.testing import Server, run_program, run_server

EXAMPLES = Path(__file__).parents[2] / "examples"


def client(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def test_every_example_states_its_command_and_has_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for path in EXAMPLES.glob("*.py"):
        description = path.read_text().split('"""')[1]
        (name,) = re.findall(rf"prefork (?:serve|run) ({path.stem}(?::handle|\.py))", description)
        assert f'"{name}"' in tests, f"{path.name} has no test"


def test_echo_sends_each_line_back() -> None:
    with run_server("echo:handle", cwd=EXAMPLES) as server:
        with client(server) as sock:
            sock.sendall(b"one\ntwo\nthree")
            sock.shutdown(socket.SHUT_WR)
            assert sock.makefile("rb").read() == b"one\ntwo\nthree"
        assert server.stop() == 0


def test_chat_sends_lines_to_the_guests_of_one_room() -> None:
    with run_server("chat:handle", "--workers", "1", cwd=EXAMPLES) as server:
        with client(server) as ann, client(server) as bob, client(server) as eve:
            guests = {}
            for name, sock, room in (("ann", ann, "kitchen"), ("bob", bob, "kitchen"), ("eve", eve, "cellar")):
                guests[name] = sock.makefile("rb")
                assert guests[name].readline().startswith(b"who are you")
                sock.sendall(f"{name} {room}\n".encode())
                assert guests[name].readline().startswith(f"* {name} came in".encode())
            assert guests["ann"].readline() == b"* bob came in (2 here)\n"
            bob.sendall("gr\u00fc\u00dfe\n".encode())
            assert guests["ann"].readline() == "bob: gr\u00fc\u00dfe\n".encode()
            assert guests["bob"].readline() == "bob: gr\u00fc\u00dfe\n".encode()
            bob.close()
            guests["bob"].close()
            assert guests["ann"].readline() == b"* bob left\n"
            server.signal(signal.SIGTERM)
            assert guests["ann"].read() == b"* the server is going down, goodbye\n"
            # The other room got none of it.
            assert guests["eve"].read() == b"* the server is going down, goodbye\n"
        assert server.wait() == 0
        assert "error" not in server.stderr()


def test_ticker_goes_on_through_a_reload_whichever_worker_answers(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "ticker.py", tmp_path)
    answers: dict[str, int] = {}

    def ask() -> int:
        """Return the number of ticks, and note it for the worker that answers."""
        with client(server) as sock:
            sock.sendall(b"\n")
            found = re.fullmatch(r"(\d+) ticks, says worker ([01])\n", sock.makefile().readline())
        assert found
        assert int(found[1]) >= max(answers.values(), default=0)
        answers[found[2]] = int(found[1])
        return int(found[1])

    with run_program("ticker.py", "0", options=("-w", "2"), cwd=tmp_path) as server:
        wait_until(lambda: ask() >= 2 and len(answers) == 2, 30, "ticks that both workers tell")
        server.signal(signal.SIGHUP)
        wait_until(lambda: "before generation 1 has exited" in server.stderr(), 30, "the reload")
        before = ask()
        answers.clear()
        wait_until(lambda: ask() >= before + 2 and len(answers) == 2, 30, "ticks after the reload")
        assert server.stop() == 0
        assert "Traceback" not in server.stderr(), server.stderr()


def test_chat_disconnects_a_guest_that_does_not_read() -> None:
    with (
        run_server("chat:handle", "--workers", "1", cwd=EXAMPLES) as server,
        client(server) as idle,
        client(server) as talker,
        talker.makefile("rb") as received,
    ):
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.sendall(b"idle hall\n")
        talker.sendall(b"talker hall\n")
        received.readline()
        received.readline()
        line = b"x" * 60_000 + b"\n"
        for _ in range(200):
            talker.sendall(line)
            if received.readline() == b"* idle left\n":
                break
        else:
            pytest.fail("the guest that does not read is still connected")


@pytest.fixture
def kv() -> object:
    with run_server("kv:handle", "--workers", "1", cwd=EXAMPLES) as server:
        yield server


def redis_cli(server: Server, *words: str) -> str:
    need("redis-cli")
    command = ["redis-cli", "-p", str(server.port), "--no-raw", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()


def test_kv_answers_redis_cli(kv: Server) -> None:
    assert redis_cli(kv, "ping") == "PONG"
    assert redis_cli(kv, "echo", "two words") == '"two words"'
    assert redis_cli(kv, "set", "a", "1\r\n2") == "OK"
    assert redis_cli(kv, "get", "a") == '"1\\r\\n2"'
    assert redis_cli(kv, "get", "none") == "(nil)"
    assert redis_cli(kv, "set", "a", "x", "nx") == "(nil)"
    assert redis_cli(kv, "set", "b", "x", "xx") == "(nil)"
    assert redis_cli(kv, "incr", "n") == "(integer) 1"
    assert redis_cli(kv, "incr", "n") == "(integer) 2"
    assert "not an integer" in redis_cli(kv, "incr", "a")
    assert redis_cli(kv, "exists", "a", "n", "z") == "(integer) 2"
    assert redis_cli(kv, "dbsize") == "(integer) 2"
    assert redis_cli(kv, "del", "a", "n", "z") == "(integer) 2"
    assert redis_cli(kv, "set", "brief", "x", "px", "30") == "OK"
    wait_until(lambda: redis_cli(kv, "get", "brief") == "(nil)")
    assert "wrong number" in redis_cli(kv, "get")
    assert "unknown command" in redis_cli(kv, "flushall")
    assert "syntax" in redis_cli(kv, "set", "a", "b", "what")
    assert "invalid expire" in redis_cli(kv, "set", "a", "b", "ex", "0")


def test_kv_answers_redis_benchmark(kv: Server) -> None:
    need("redis-benchmark")
    done = subprocess.run(
        ["redis-benchmark", "-p", str(kv.port), "-t", "ping,set,get", "-P", "16", "-n", "20000", "-q", "-d", "100"],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    rates = re.findall(r"(\w+): ([\d.]+) requests per second", done.stdout.replace("\r", "\n"))
    assert {name for name, _ in rates} == {"PING_INLINE", "PING_MBULK", "SET", "GET"}
    assert all(float(rate) > 0 for _, rate in rates)
    assert redis_cli(kv, "exists", "key:__rand_int__") == "(integer) 1"


def test_kv_parses_requests_in_pieces_and_survives_garbage(kv: Server) -> None:
    request = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nv*\r\nv\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"
    with client(kv) as sock, sock.makefile("rb") as file:
        for cut in range(1, len(request), 3):
            sock.sendall(request[:cut])
            sock.sendall(request[cut:])
            assert file.read(5 + 4 + 7) == b"+OK\r\n$5\r\nv*\r\nv\r\n"
    for garbage in (b"*1\r\n:5\r\n", b"*-7\r\n", b"*1\r\n$9999999999\r\n", b"*1000000\r\n" + b"$1\r\na\r\n" * 200_000):
        with client(kv) as sock:
            try:
                sock.sendall(garbage)
                sock.shutdown(socket.SHUT_WR)
                with sock.makefile("rb") as file:
                    answer = file.read()
            except ConnectionError:
                continue
            assert answer.startswith(b"-ERR") or answer == b""
    assert redis_cli(kv, "ping") == "PONG"
    assert "Traceback" not in kv.stderr()
