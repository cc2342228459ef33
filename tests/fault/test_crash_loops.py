"""Workers that keep dying: few forks, siblings untouched, and an exit status of its own when no worker accepts."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest
from helpers.proc import cpu_seconds
from helpers.support import slow, traced, wait_until

from prefork.testing import Server, run_server

#: Broken from the moment that there is a file called `broken`, which says how.
SERVICE = """
import asyncio, os

def how():
    try:
        return open("broken").read()
    except FileNotFoundError:
        return ""

if how() == "raises at import":
    raise RuntimeError("the configuration is gone")
if how() == "exits at import":
    os._exit(1)

class Service:
    async def start(self):
        if how() == "raises at start":
            raise ConnectionError("the database is away")
        if how() == "exits when ready":
            asyncio.get_running_loop().call_later(0.05, os._exit, 1)
    async def handle(self, stream):
        async for line in stream:
            stream.write(b"%d\\n" % os.getpid())
    async def stop(self): ...

service = Service()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(SERVICE)
    return tmp_path


def ask(server: Server) -> int:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(b"?\n")
        return int(sock.makefile("rb").readline())


def deaths(server: Server) -> list[str]:
    return re.findall(r"worker \d+ \(pid \d+\) died: .*", server.stderr())


@pytest.mark.slow
@pytest.mark.parametrize("how", [slow("raises at start"), "exits when ready"])
def test_when_every_worker_keeps_dying_the_server_exits_with_status_5(folder: Path, how: str) -> None:
    with run_server("app:service", "-w", "2", cwd=folder) as server:
        (folder / "broken").write_text(how)
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        assert server.wait(60) == 5
        # Each slot: the first death, and the replacements that followed.
        assert 2 <= len(deaths(server)) <= 20
        assert ("start() raised ConnectionError: the database is away" in server.stderr()) == (how == "raises at start")
        last = server.stderr().splitlines()[-1]
        assert last.startswith("prefork: no worker accepts")
        assert "Traceback" not in server.stderr()


@pytest.mark.slow
def test_a_sibling_serves_while_a_worker_cannot_start(folder: Path) -> None:
    with run_server("app:service", "-w", "2", cwd=folder) as server:
        victim, survivor = server.worker_pids()
        (folder / "broken").write_text("raises at import")
        spent = cpu_seconds(server.pid)
        os.kill(victim, signal.SIGKILL)
        answers = set()
        while len(deaths(server)) < 3:
            answers.add(ask(server))
        assert answers == {survivor}
        assert cpu_seconds(server.pid) - spent < 1.0
        assert "worker 0 cannot start: service app:service: RuntimeError: the configuration is gone" in server.stderr()
        (folder / "broken").unlink()
        wait_until(lambda: len(server.worker_pids()) == 2 and ask(server) not in answers, 30, "the replacement")
        assert server.stop() == 0


@pytest.mark.slow
def test_repeated_deaths_are_restarted_after_growing_delays(folder: Path) -> None:
    with run_server("app:service", "-w", "2", cwd=folder) as server:
        (folder / "broken").write_text("exits at import")
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        wait_until(lambda: len(deaths(server)) >= 4, 30)
        delays = [float(found) for found in re.findall(r"restarting in ([\d.]+) s", server.stderr())]
        assert len(delays) >= 3
        assert "restarting\n" in server.stderr(), "the first at once: it had served"
        assert delays == sorted(delays)
        assert delays[-1] >= 2 * delays[0]


def test_a_stop_does_not_wait_for_a_replacement(folder: Path) -> None:
    with run_server("app:service", "-w", "1", cwd=folder) as server:
        (folder / "broken").write_text("exits at import")
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        wait_until(lambda: "restarting in" in server.stderr())
        assert server.stop() == 0


def test_a_worker_whose_listener_breaks_is_replaced(folder: Path) -> None:
    """accept(2) fails in one worker with what no waiting can cure."""
    with run_server("app:service", "-w", "2", cwd=folder) as server:
        before = server.worker_pids()
        victim = before[0]
        trace = folder / "trace"
        with traced(victim, "-e", "trace=accept4", "-e", "inject=accept4:error=EINVAL", log=trace):
            wait_until(lambda: ask(server) and victim not in server.worker_pids(), 30, "the victim's end")
        wait_until(lambda: len(server.worker_pids()) == 2)
        assert f"listening socket 127.0.0.1:{server.port} failed" in server.stderr()
        assert f"(pid {victim}) died: exit status 4, restarting" in server.stderr()
        assert trace.read_text().count("accept4") < 10
        assert before[1] in server.worker_pids()
        assert server.stop() == 0
