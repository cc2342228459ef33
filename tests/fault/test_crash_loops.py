"""Workers that keep dying: few forks, siblings untouched, an end with a status of its own when nobody is left."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from helpers.support import need, need_root, wait_until

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


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("how", ["raises at start", "exits when ready"])
def test_when_every_worker_keeps_dying_it_gives_up_with_its_own_status(folder: Path, how: str) -> None:
    with run_server("app:service", "-w", "2", cwd=folder) as server:
        (folder / "broken").write_text(how)
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        assert server.wait(60) == 5
        # Each slot: the first death, and the replacements that followed.
        assert 2 <= len(deaths(server)) <= 20
        assert ("start() raised ConnectionError: the database is away" in server.stderr()) == (how == "raises at start")
        last = server.stderr().splitlines()[-1]
        assert last.startswith("prefork: no worker is left")
        assert "Traceback" not in server.stderr()


def test_a_sibling_serves_on_meanwhile_and_the_worker_is_back_when_it_can(folder: Path) -> None:
    with run_server("app:service", "-w", "2", cwd=folder) as server:
        victim, survivor = server.worker_pids()
        (folder / "broken").write_text("raises at import")
        spent = processor_seconds(server.pid)
        os.kill(victim, signal.SIGKILL)
        answers = set()
        while len(deaths(server)) < 3:
            answers.add(ask(server))
        assert answers == {survivor}
        assert processor_seconds(server.pid) - spent < 1.0
        assert "worker 0 cannot start: service app:service: RuntimeError: the configuration is gone" in server.stderr()
        (folder / "broken").unlink()
        wait_until(lambda: len(server.worker_pids()) == 2 and ask(server) not in answers, 30, "the replacement")
        assert server.stop() == 0


def test_deaths_are_answered_later_and_later(folder: Path) -> None:
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
    need("strace")
    need_root()
    with run_server("app:service", "-w", "2", cwd=folder) as server:
        before = server.worker_pids()
        victim = before[0]
        trace = folder / "trace"
        tracer = subprocess.Popen(
            ["strace", "-qq", "-p", str(victim), "-o", str(trace), "-e", "trace=accept4"]
            + ["-e", "inject=accept4:error=EINVAL"],
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: "TracerPid:\t0" not in Path(f"/proc/{victim}/status").read_text())
            wait_until(lambda: ask(server) and victim not in server.worker_pids(), 30, "the victim's end")
        finally:
            tracer.terminate()
            tracer.wait()
        wait_until(lambda: len(server.worker_pids()) == 2)
        assert f"listening socket 127.0.0.1:{server.port} failed" in server.stderr()
        assert f"(pid {victim}) died: exit status 4, restarting" in server.stderr()
        assert trace.read_text().count("accept4") < 10
        assert before[1] in server.worker_pids()
        assert server.stop() == 0
