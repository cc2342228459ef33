"""What an operator sees and ends of a running server: connections, stacks, kicks, suspension, recycling."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from helpers.servers import (
    answer,
    asking,
    command,
    echo,
    end,
    exhaust_supervisor,
    leave_descriptors,
    ready,
    serving,
    status,
    upgrade,
)
from helpers.support import need, wait_until

from prefork.cli.commands import parse
from prefork.console.connections import read_connections
from prefork.console.joining import Row, facts_of
from prefork.console.servers import Attachment
from prefork.errors import PreforkError
from prefork.testing import Server, run_program

SERVICE = """
import asyncio, time

async def wait_for_database():
    await asyncio.wait_for(asyncio.Event().wait(), 600)

async def handle(stream):
    async for line in stream:
        if line == b"wait\\n":
            await wait_for_database()
        if line == b"hang\\n":
            stream.write(line)
            await stream.drain()
            time.sleep(600)
        stream.write(line)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as running:
        yield running


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def connect(stack: ExitStack, server: Server, line: bytes = b"hello\n", reply: bool = True) -> socket.socket:
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
    sock.sendall(line)
    if reply:
        assert sock.recv(100) == line
    return sock


def peer_of(sock: socket.socket) -> str:
    return "{}:{}".format(*sock.getsockname())


def rows(folder: Path) -> dict[str, Row]:
    """Return the connections by the names of their peers, as the library tells them."""
    with Attachment(str(folder / "control")) as attachment:
        found = read_connections(attachment).rows
    assert len({row.peer for row in found}) == len(found)
    return {row.peer: row for row in found}


def run(folder: Path, *words: str) -> tuple[int, str]:
    """Run a command in this process, which is cheaper; return its exit code, and its output or error."""
    try:
        action = parse([*words, "--control", str(folder / "control")])
        assert not isinstance(action, str)
        text, code = action()
    except PreforkError as exc:
        return exc.exit_code, str(exc)
    return code, text


def ask(folder: Path, *words: str, code: int = 0) -> dict[str, Any]:
    done = run(folder, *words, "--json")
    assert done[0] == code, done
    value: dict[str, Any] = json.loads(done[1])
    return value


def closed(folder: Path, reason: str) -> int:
    return int(status(folder)["totals"]["closed"][reason])


def test_connections_are_those_of_the_clients(server: Server, folder: Path, stack: ExitStack) -> None:
    clients = [connect(stack, server) for _ in range(4)]
    clients[0].sendall(b"x" * 1000 + b"\n")
    assert len(clients[0].recv(1001, socket.MSG_WAITALL)) == 1001
    found = rows(folder)
    assert set(found) == {peer_of(sock) for sock in clients}
    assert len({row.id for row in found.values()}) == 4
    pids = {worker["slot"]: worker["pid"] for worker in status(folder)["workers"]}
    for row in found.values():
        assert row.pid == pids[row.worker]
        assert row.id is not None
        assert row.id.startswith(f"{row.worker}-")
        assert (row.phase, row.tls, row.stale, row.unsent) == ("open", None, False, 0)
        assert row.listener == f"127.0.0.1:{server.port}"
        assert row.age is not None
        assert 0 <= row.age < 60
    first = found[peer_of(clients[0])]
    assert first.rx == 6 + 1001
    assert facts_of(first.kernel)["retransmissions"] == 0
    # The command shows the same, a part of it if there are many.
    told = ask(folder, "connections", "--sort", "rx", "--limit", "1")
    assert (told["more"], told["stale"], told["complete"]) == (3, [], True)
    assert told["connections"][0]["peer"] == peer_of(clients[0])
    done = command(folder, "connections", "--peer", peer_of(clients[1]))
    text = done.stdout.splitlines()
    assert text[0].split() == ["ID", "PEER", "LISTENER", "WORKER", "PHASE", "AGE", "IDLE", "RX", "TX", "UNSENT", "TLS"]
    assert [line.split()[1] for line in text[1:]] == [peer_of(clients[1])]
    _, detail = run(folder, "connections", "--detail", str(first.id))
    assert "rx: 1007\n" in detail
    assert "limited by:\n" in detail
    assert run(folder, "connections", "--detail", "0-999")[0] == 1
    check_kicks(server, folder, clients, found)


def check_kicks(server: Server, folder: Path, clients: list[socket.socket], found: dict[str, Row]) -> None:
    assert ask(folder, "kick", str(found[peer_of(clients[0])].id)) == {"ok": True, "kicked": 1}
    assert ask(folder, "kick", peer_of(clients[1])) == {"ok": True, "kicked": 1}
    for sock in clients[:2]:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert set(rows(folder)) == {peer_of(sock) for sock in clients[2:]}
    # A network is several: nothing happens without a terminal to ask on, or --yes.
    code, error = run(folder, "kick", "127.0.0.0/8")
    assert code == 2
    assert "2 connections of 127.0.0.0/8 would be aborted" in error
    assert ask(folder, "kick", "127.0.0.0/8", "--yes") == {"ok": True, "kicked": 2}
    wait_until(lambda: closed(folder, "kicked") == 4)
    assert f"kicked 1 connection of {peer_of(clients[0])} (prefork kick)" in server.stderr()
    assert ask(folder, "kick", "0-1", code=1)["ok"] is False
    assert ask(folder, "kick", "192.0.2.1:5000", code=1)["ok"] is False
    assert run(folder, "kick", "nonsense")[0] == 2
    assert echo(("127.0.0.1", server.port)) == b"hello\n"


def test_what_a_hanging_worker_does_not_say_the_kernel_does(server: Server, folder: Path, stack: ExitStack) -> None:
    clients = [connect(stack, server, b"hang\n") for _ in range(2)]
    wait_until(lambda: all(worker["open"] for worker in status(folder)["workers"]))
    started = time.monotonic()
    found = rows(folder)
    # The aim is 0.1 s on a machine of its own.
    assert time.monotonic() - started < 2
    assert {peer: (row.stale, row.phase, row.id, row.rx) for peer, row in found.items()} == {
        peer_of(sock): (True, "unknown", None, 5) for sock in clients
    }
    assert sorted(row.worker for row in found.values()) == [0, 1]
    assert status(folder)["state"] == "serving"
    told = ask(folder, "stacks", "--worker", "0")["workers"]
    assert [(each["slot"], each["stale"]) for each in told] == [(0, True)]
    assert any("service.py" in line and "handle" in line for line in told[0]["lines"])
    assert "no answer from worker 0, 1" in run(folder, "connections")[1]
    # Clients that came meanwhile do not add up: each is closed, and the worker's queue of them is bounded.
    for _ in range(12):
        rows(folder)
    assert "Traceback" not in server.stderr()


def test_stacks_follow_awaits_and_hostile_clients_cost_nothing(server: Server, folder: Path, stack: ExitStack) -> None:
    for line in (b"wait\n", b"wait\n"):
        connect(stack, server, line, reply=False)
    connect(stack, server)

    def functions(stack: dict[str, Any]) -> set[str]:
        return {frame["function"] for frame in stack["frames"]}

    def waiting() -> list[dict[str, Any]]:
        told = ask(folder, "stacks")["workers"]
        assert [each["stale"] for each in told] == [False, False]
        return [each for worker in told for each in worker["stacks"] if each["peers"]]

    wait_until(lambda: sum(each["tasks"] for each in waiting() if "wait_for_database" in functions(each)) == 2)
    # Where that waits is in a task of its own before Python 3.12.
    assert {"handle", "wait_for_database", "wait_for"} <= set().union(*map(functions, waiting()))
    assert "wait_for_database" in run(folder, "stacks")[1]
    assert run(folder, "stacks", "--worker", "7")[0] == 2
    check_requests_in_a_row(folder)
    check_hostile_clients(server, folder, stack)


def check_requests_in_a_row(folder: Path) -> None:
    """Requests that are sent together are answered in their order, each once."""
    with Attachment(str(folder / "control")) as attachment:
        sock = attachment.workers[0].sock
        assert sock is not None
        sock.settimeout(10)
        commands = [b'{"command": "connections"}\n', b"rubbish\n", b'{"command": "kick", "numbers": [9]}\n'] * 50
        sock.sendall(b"".join(commands))
        answered: list[str] = []
        file = sock.makefile("rb")
        while len(answered) < len(commands):
            value = json.loads(file.readline())
            answered += value.get("end", {})
        assert answered == ["connections", "error", "kicked"] * 50
        file.close()
    # One connection to the supervisor is one request: a second one is never taken for it.
    replied = answer(asking(folder, b'{"command": "status"}\n{"command": "stop"}\n'))
    assert replied["state"] == "serving"
    assert status(folder)["state"] == "serving"


def check_hostile_clients(server: Server, folder: Path, stack: ExitStack) -> None:
    control = str(folder / "control")
    attachments = [stack.enter_context(Attachment(control)) for _ in range(10)]
    # Eight clients at a time; the others find their connections closed.
    for attachment in attachments[8:]:
        sock = attachment.workers[0].sock
        assert sock is not None
        sock.settimeout(10)
        assert sock.recv(1) == b""
    wrong = [b"x" * 100_000, b"[" * 50_000 + b"\n", b'{"command": "kick", "peers": [1]}\n', b"\xff\0\n"]
    for attachment, words in zip(attachments, wrong, strict=False):
        sock = attachment.workers[0].sock
        assert sock is not None
        sock.settimeout(10)
        try:
            sock.sendall(words)
            assert b"error" in (sock.recv(1000) or b"error")
        except (BrokenPipeError, ConnectionResetError):
            pass
    for attachment in attachments:
        attachment.close()
    client = connect(stack, server)
    wait_until(lambda: not rows(folder)[peer_of(client)].stale)
    assert "Traceback" not in server.stderr()


def test_suspended_clients_wait_whatever_happens_to_workers(server: Server, folder: Path, stack: ExitStack) -> None:
    before = connect(stack, server)
    assert ask(folder, "suspend")["changed"] is True
    assert ask(folder, "suspend")["changed"] is False
    assert status(folder)["suspended"] is True
    assert {worker["paused"] for worker in status(folder)["workers"]} == {"suspended"}
    waiting = [connect(stack, server, reply=False) for _ in range(3)]
    before.sendall(b"again\n")
    assert before.recv(100) == b"again\n"
    accepted = status(folder)["totals"]["accepted"]
    pids = {worker["pid"] for worker in ready(folder)}
    os.kill(max(pids), signal.SIGKILL)
    wait_until(lambda: len({worker["pid"] for worker in ready(folder)} - {max(pids)}) == 2)
    assert run(folder, "reload")[0] == 0
    assert status(folder)["totals"]["accepted"] == accepted
    for sock in waiting:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        sock.settimeout(10)
    assert run(folder, "resume") == (0, "resumed: the workers accept")
    for sock in waiting:
        assert sock.recv(100) == b"hello\n"
    wait_until(lambda: {worker["paused"] for worker in status(folder)["workers"]} == {None})
    log = server.stderr()
    assert log.count("suspended (control socket)") == log.count("resumed (control socket)") == 1
    assert "paused" not in log
    check_recycling(server, folder, stack)


@pytest.mark.slow
def test_an_upgrade_keeps_accepting_suspended(server: Server, folder: Path, stack: ExitStack) -> None:
    assert ask(folder, "suspend")["changed"] is True
    waiting = connect(stack, server, reply=False)
    successor = upgrade(folder)
    stack.callback(end, successor)
    stack.callback(waiting.close)
    wait_until(lambda: status(folder)["pid"] == successor)
    assert status(folder)["suspended"] is True
    assert status(folder)["totals"]["accepted"] == 0
    assert ask(folder, "resume")["changed"] is True
    assert waiting.recv(100) == b"hello\n"


def check_recycling(server: Server, folder: Path, stack: ExitStack) -> None:
    """One worker is replaced, and drains, which it may do for ever."""
    clients = [connect(stack, server) for _ in range(4)]
    pids = {worker["slot"]: worker["pid"] for worker in ready(folder)}
    assert ask(folder, "recycle", "1") == {"ok": True, "slot": 1}
    wait_until(lambda: {worker["slot"]: worker["pid"] for worker in ready(folder)}.get(1) not in (None, pids[1]))
    assert {worker["slot"]: worker["pid"] for worker in ready(folder)}[0] == pids[0]
    for sock in clients:
        sock.sendall(b"still\n")
        assert sock.recv(100) == b"still\n"
    # The worker that drains answers, too.
    assert set(rows(folder)) >= {peer_of(sock) for sock in clients}
    assert run(folder, "recycle", "7")[0] == 3


def test_it_works_without_a_free_descriptor(server: Server, folder: Path, stack: ExitStack) -> None:
    need("prlimit")
    client = connect(stack, server)
    worker = rows(folder)[peer_of(client)].pid

    def is_told_by_the_kernel() -> bool:
        # Each time, because the end of the last client leaves the worker one more.
        leave_descriptors(worker, 0)
        return rows(folder)[peer_of(client)].stale

    wait_until(is_told_by_the_kernel)
    leave_descriptors(worker, 10)
    wait_until(lambda: rows(folder)[peer_of(client)].stale is False)
    exhaust_supervisor(server, folder, stack)
    assert status(folder)["state"] == "serving"
    assert set(rows(folder)) == {peer_of(client)}
    # Nor does a reload need a free one: each worker is forked with what is kept for that.
    code, text = run(folder, "reload")
    assert (code, text.splitlines()[0]) == (0, "reloaded: every worker is of generation 1")


def test_of_a_program_the_kernel_tells(tmp_path: Path, stack: ExitStack) -> None:
    (tmp_path / "program.py").write_text("""
import asyncio

async def handle(reader, writer):
    writer.write(await reader.readline())

async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    await server.serve_forever()

asyncio.run(main())
""")
    options = ["--control", str(tmp_path / "control"), "-w", "1"]
    with run_program("program.py", options=options, cwd=tmp_path) as server:
        client = connect(stack, server, b"hello", reply=False)
        wait_until(lambda: peer_of(client) in rows(tmp_path))
        row = rows(tmp_path)[peer_of(client)]
        assert (row.phase, row.stale, row.id, row.rx) == ("open", False, None, 5)
        assert row.pid == server.worker_pids()[0]
        code, error = run(tmp_path, "kick", peer_of(client))
        assert code == 3
        assert "the program's own" in error
        assert "goes on" in run(tmp_path, "suspend")[1]
        # This one accepts by asyncio, which prefork has replaced.
        waiting = connect(stack, server, reply=False)
        assert peer_of(waiting) not in rows(tmp_path)
        assert run(tmp_path, "resume")[0] == 0
        assert waiting.recv(100) == b"hello\n"
