"""The console of an operator stays bounded and truthful, whatever a worker, a client or the moment does to it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.servers import command, end, serving, status, upgrade
from helpers.support import slow, wait_until

from prefork.console.connections import read_connections
from prefork.console.servers import Attachment
from prefork.console.stacks import WorkerStacks, read_stacks
from prefork.testing import Server

#: A worker that was taken over answers in place of its console.
EVIL = r"""
import asyncio, json, os, re, time
from prefork.worker import console

def sockets(pid):
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield int(re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}"))[1])
        except (OSError, TypeError):
            continue

def rows(count, inode=0, peer="10.9.9.9:1", phase="open", tls="", age=1.0, number=1):
    return json.dumps({"rows": [[number + each, inode, peer, phase, age, 0, tls] for each in range(count)]}).encode()

tasks = []
END = b'{"end": {"connections": 0}}'
LIES = {
    "closes": [],
    "says nothing": [b'{"rows":[]}'],
    "deep": [b'{"rows":' + b"[" * 100_000],
    "long": [b"x" * 2**20] * 64,
    "endless": [rows(1000)] * 100_000,
    "not JSON": [b"\x00\x1b[2J\xff", END],
    "not an object": [b"[]", END],
    "infinite": [b'{"rows":[[1,2,"p","open",Infinity,0,""]]}', END],
    "digits": [b'{"rows":[[' + b"9" * 10_000 + b',2,"p","open",1,0,""]]}', END],
    "end is a list": [b'{"end": [1]}', END],
    "a million stacks": [b'{"stack":["n",1,[],"w",[],false]}'] * 1_000_000,
    "escapes": [rows(3, peer="\x1b]0;x\x07\u202e\ud800\0\n\r" + "x" * 5000, tls="\x1b[2J"), END],
}

def evil(mode, pid):
    # Returns what answers in place of the console; `pid` is a sibling.
    if mode == "claims":
        lines = [rows(1000, inode) for inode in sockets(pid)] * 3 + [END]
    elif mode == "claims its own":
        lines = [rows(1000, inode) for inode in sockets(os.getpid())] * 3 + [END]
    else:
        lines = LIES[mode]

    async def answer(self, client, line):
        for each in lines:
            await asyncio.get_running_loop().sock_sendall(client, each + b"\n" * (mode != "long"))
        client.close()
    return answer

async def handle(stream):
    async for line in stream:
        word, _, rest = line.decode().strip().partition(" ")
        if word == "tasks":
            tasks.extend(asyncio.ensure_future(asyncio.sleep(1000)) for _ in range(5000))
        if word == "hang":
            time.sleep(1000)
        if word == "evil":
            pid, _, mode = rest.partition(" ")
            console.Console._answer = evil(mode, int(pid))
        stream.write(b"%d\n" % os.getpid())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "service.py").write_text(EVIL)
    return tmp_path


def connect(server: Server, line: bytes = b"who\n") -> tuple[socket.socket, int]:
    """Return a connection, and the pid of the worker that serves it."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    sock.sendall(line)
    return sock, int(sock.recv(100))


@contextlib.contextmanager
def one_each(server: Server, workers: int) -> Iterator[dict[int, socket.socket]]:
    """Hold one connection to each worker, by its pid."""
    with contextlib.ExitStack() as stack:
        found: dict[int, socket.socket] = {}
        while len(found) < workers:
            sock, pid = connect(server)
            stack.enter_context(sock)
            found.setdefault(pid, sock)
        yield found


def peer_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()
    return f"{host}:{port}"


CHEAP = (
    *("closes", "says nothing", "deep", "long", "not JSON", "not an object", "infinite", "digits", "end is a list"),
    *("a million stacks", "escapes"),
)


@pytest.mark.parametrize("lies", [CHEAP, slow(("endless", "claims", "claims its own"))], ids=["strange", "many"])
def test_a_hostile_worker_lies_of_its_own_connections_only(folder: Path, lies: tuple[str, ...]) -> None:
    control = str(folder / "control")
    with serving(folder, "--hang-timeout", "60") as server, one_each(server, 2) as socks:
        (evil, channel), (honest, other) = socks.items()
        for lie in lies:
            channel.sendall(f"evil {honest} {lie}\n".encode())
            assert int(channel.recv(100)) == evil
            began = time.process_time()
            with Attachment(control) as attachment:
                found = read_connections(attachment)
            with Attachment(control) as attachment:
                read_stacks(control, attachment, 0)
            assert time.process_time() - began < 10, lie
            shown = [each for each in found.rows if each.peer == peer_of(other)]
            assert [each.pid for each in shown] == [honest], lie
            assert {each.pid for each in found.rows} <= {evil, honest}
            texts = [text for each in found.rows[:10] for text in (each.peer, each.phase, each.tls or "")]
            assert all(text.isascii() and text.isprintable() for text in texts), texts
        other.sendall(b"who\n")
        assert int(other.recv(100)) == honest


def test_a_worker_that_is_busy_is_asked_and_one_that_hangs_is_watched(folder: Path) -> None:
    control = str(folder / "control")

    def stacks() -> list[WorkerStacks]:
        with Attachment(control) as attachment:
            return read_stacks(control, attachment)

    with serving(folder, "--hang-timeout", "60", workers=3) as server, one_each(server, 3) as socks:
        first = next(iter(socks.values()))
        first.sendall(b"tasks\n")
        assert first.recv(100)
        # Thousands of tasks are many turns of the loop.
        wait_until(lambda: [each.tasks > 5000 for each in stacks() if not each.stale].count(True) == 1)
        for sock in socks.values():
            sock.sendall(b"hang\n")

        def shows_handler(each: WorkerStacks) -> bool:
            return each.stale and any("service.py" in line and "in handle" in line for line in each.lines)

        # The stacks of a worker that hangs arrive by a pipe, on a busy machine perhaps after the command's patience.
        wait_until(lambda: sorted(each.worker.pid for each in stacks() if shows_handler(each)) == sorted(socks))
        with Attachment(control) as attachment:
            rows = read_connections(attachment).rows
        assert {each.peer: each.pid for each in rows}.items() >= {
            peer_of(sock): pid for pid, sock in socks.items()
        }.items()
        assert all(each.stale for each in rows)
        assert status(folder)["totals"]["open"] == len(rows)
        for words, error in (
            (("--worker", "9"), "prefork: --worker 9: there is no such worker\n"),
            (("--limit", "-1"), "prefork: --limit -1: must be 0 or more (0: no limit)\n"),
        ):
            refused = command(folder, "connections", *words)
            assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", error)


@pytest.mark.slow
def test_connections_that_an_upgrade_left_behind_are_shown(folder: Path) -> None:
    with serving(folder, workers=1) as server:
        kept, pid = connect(server)
        with kept, contextlib.ExitStack() as stack:
            stack.callback(end, upgrade(folder))
            with Attachment(str(folder / "control")) as attachment:
                found = read_connections(attachment)
            assert [(each.peer, each.pid, each.phase) for each in found.rows] == [(peer_of(kept), pid, "open")]
            assert (found.stale, found.unclaimed) == ([], 0)
            done = command(folder, "kick", peer_of(kept))
            assert (done.returncode, done.stderr) == (1, "")
            assert f"those of supervisor {server.pid}, which drains, cannot be kicked" in done.stdout
            stopped = command(folder, "stop", "--wait").stdout
            assert f"; supervisor {server.pid}, which it had taken over from, still drains\n" in stopped
            kept.sendall(b"who\n")
            assert int(kept.recv(100)) == pid
        assert server.wait() == 0


def test_an_interrupted_command_says_that_its_work_goes_on(folder: Path) -> None:
    with serving(folder, "--drain-timeout", "60", workers=1) as server, connect(server)[0]:
        words = [sys.executable, "-m", "prefork", "stop", "--wait", "--control", str(folder / "control")]
        waiting = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
        wait_until(lambda: status(folder)["state"] == "stopping")
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=20)
        assert waiting.returncode == 130
        assert said.splitlines()[-1] == "prefork: interrupted, but the stop goes on: see prefork status"
        assert status(folder)["state"] == "stopping"
        assert command(folder, "stop", "--now").returncode == 0
        assert server.wait() == 0
