"""`prefork.lease`: one worker at a time, through reloads, deaths and drains; in services and in programs."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Collection
from pathlib import Path

import pytest
from helpers.support import run_script, wait_until

import prefork
from prefork.testing import Server, run_program, run_server

pytestmark = pytest.mark.deadline(120)

#: Each worker writes when it holds the lease, and when its block ends; `late` connections are held by the test.
SERVICE = """
import asyncio, os, prefork

def note(what):
    with open("log", "a") as file:
        file.write(f"{what} {os.getpid()}\\n")

class Service:
    async def start(self):
        self.task = asyncio.create_task(self.run())

    async def run(self):
        async with prefork.lease("job") as lease:
            assert lease.held
            note("begin")
            try:
                await asyncio.Event().wait()
            finally:
                note("end")
        assert not lease.held
        note("after")

    async def handle(self, stream):
        stream.write(b"%d\\n" % os.getpid())
        await stream.read()

    async def stop(self):
        pass

service = Service()
"""
PROGRAM = """
import asyncio, os, sys, threading
import prefork

def note(what):
    with open("log", "a") as file:
        file.write(f"{what} {os.getpid()}\\n")

def job():
    with prefork.lease("job") as lease:
        note("begin")
        while not lease.ending:
            ended.wait(0.01)
        note("end")

async def answer(reader, writer):
    writer.write(b"%d\\n" % os.getpid())
    await reader.read()
    writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    await server.serve_forever()

ended = threading.Event()
threading.Thread(target=job, daemon=True).start()
asyncio.run(main())
"""


def noted(folder: Path) -> list[tuple[str, int]]:
    path = folder / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(what, int(pid)) for what, _, pid in (line.partition(" ") for line in lines)]


def holders(folder: Path) -> list[int]:
    return [pid for what, pid in noted(folder) if what == "begin"]


def never_two_at_once(folder: Path, killed: Collection[int] = ()) -> bool:
    held: int | None = None
    for what, pid in noted(folder):
        if what == "begin":
            if held is not None and held not in killed:
                return False
            held = pid
        elif what == "end":
            held = None
    return True


def connect_to(server: Server, pid: int) -> socket.socket:
    """Return a connection to this worker."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        if int(sock.makefile().readline()) == pid:
            return sock
        sock.close()
    raise AssertionError(f"{pid} got no connection")


def test_one_worker_of_a_service_holds_a_lease_and_the_next_one_has_it_when_it_dies(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SERVICE)
    with run_server("app:service", "-w", "3", cwd=tmp_path) as server:
        killed = set()
        for count in (1, 2, 3):
            wait_until(lambda count=count: len(holders(tmp_path)) == count, 20, f"holder {count}")
            killed.add(holders(tmp_path)[-1])
            os.kill(holders(tmp_path)[-1], signal.SIGKILL)
        wait_until(lambda: len(holders(tmp_path)) == 4, 20)
        assert never_two_at_once(tmp_path, killed)
        assert server.stop() == 0
        assert noted(tmp_path)[-2:] == [("end", holders(tmp_path)[-1]), ("after", holders(tmp_path)[-1])]


def test_a_worker_that_drains_gives_its_lease_up_at_once_although_it_still_has_connections(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SERVICE)
    with run_server("app:service", "-w", "2", cwd=tmp_path) as server:
        wait_until(lambda: len(holders(tmp_path)) == 1, 20)
        (first,) = holders(tmp_path)
        with connect_to(server, first):
            old = set(server.worker_pids())
            server.signal(signal.SIGHUP)
            wait_until(lambda: "reloaded: " in server.stderr(), 30)
            wait_until(lambda: holders(tmp_path) and holders(tmp_path)[-1] not in old, 20, "a holder of the new ones")
            assert first in server.worker_pids()
        assert never_two_at_once(tmp_path)
        assert ("after", first) in noted(tmp_path)


def test_a_thread_of_a_program_holds_a_lease_until_its_worker_drains(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    with run_program("program.py", options=("-w", "2"), cwd=tmp_path) as server:
        wait_until(lambda: len(holders(tmp_path)) == 1, 20)
        (first,) = holders(tmp_path)
        with connect_to(server, first):
            old = set(server.worker_pids())
            server.signal(signal.SIGHUP)
            wait_until(lambda: holders(tmp_path)[-1] not in old, 30, "a holder of the new ones")
            assert ("end", first) in noted(tmp_path)
        # The other old worker may have had it for a moment, and ended before its thread noted the end.
        assert never_two_at_once(tmp_path, old - {first})


def test_the_successor_of_an_upgrade_grants_leases_while_its_predecessor_drains(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SERVICE)
    with run_server("app:service", "-w", "2", "--pidfile", "pid", cwd=tmp_path) as server:
        wait_until(lambda: len(holders(tmp_path)) == 1, 20)
        (first,) = holders(tmp_path)
        with connect_to(server, first):
            server.signal(signal.SIGUSR2)
            wait_until(lambda: (tmp_path / "pid").read_text() != f"{server.pid}\n", 60, "the successor")
            wait_until(lambda: len(holders(tmp_path)) >= 2 and holders(tmp_path)[-1] != first, 60, "its holder")
            assert server._process.poll() is None, "a connection stays there"
        successor = int((tmp_path / "pid").read_text())
        assert never_two_at_once(tmp_path)
        os.kill(successor, signal.SIGTERM)
        wait_until(lambda: not (tmp_path / "pid").exists(), 30, "its end")


def test_a_claim_that_is_refused_or_given_up_says_so(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("""
import asyncio, prefork
async def handle(stream):
    held = prefork.lease("held")
    assert held.acquire()
    waiting = prefork.lease("held")
    out = [str(waiting.acquire(timeout=0.05)), str(waiting.held)]
    try:
        held.acquire()
    except RuntimeError as exc:
        out.append(str(exc))
    more = [prefork.lease(str(number)) for number in range(63)]
    assert all(each.acquire() for each in more)
    try:
        prefork.lease("more").acquire()
    except RuntimeError as exc:
        out.append(str(exc))
    for each in (held, *more):
        each.release()
    try:
        async with asyncio.timeout(5), prefork.lease("held"):
            raise ValueError("of the block")
    except ValueError as exc:
        out.append(str(exc))
    stream.write("\\n".join(out).encode())
""")
    with (
        run_server("app:handle", "-w", "1", cwd=tmp_path) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock,
    ):
        lines = sock.makefile().read().splitlines()
    assert lines == [
        "False",
        "False",
        "lease 'held' is held or waited for already: make another object",
        "lease 'more': a worker can hold or wait for 64 leases at once",
        "of the block",
    ]


def test_a_process_without_siblings_holds_every_lease_at_once() -> None:
    with prefork.lease("mine") as one, prefork.lease("mine") as other:
        assert one.name == other.name == "mine"
    with pytest.raises(ValueError, match="1 to 100 printable"):
        prefork.lease("")


def test_the_children_of_fork_processes_have_no_supervisor_to_ask() -> None:
    done = run_script("""
import sys, prefork
prefork.fork_processes(1)
try:
    prefork.lease("x").acquire()
except RuntimeError as exc:
    print(exc, flush=True)
""")
    assert "need a supervisor" in done.stdout.replace("needs", "need")
