"""What a supervisor does besides a reload, with servers of the catalogue under load: nothing is lost.

An upgrade, another number of workers, and recycling.
"""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path

import pytest
from helpers.proc import gone
from helpers.servers import command, end, status
from helpers.support import wait_until

from programs.catalogue import PROGRAMS, Program
from programs.load import loading
from programs.running import START, each_of
from programs.test_run import run

pytestmark = pytest.mark.deadline(180)

#: One for each way in which a program accepts: our accepting, uvloop's, a selector loop of its own, trio's, a thread's.
NAMES = ("aiohttp", "uvicorn", "tornado", "twisted-epoll", "trio", "socketserver", "asyncio")
parametrized = each_of(each for each in PROGRAMS if each.name in NAMES)


@parametrized
def test_an_upgrade_under_load_loses_nothing(program: Program, tmp_path: Path) -> None:
    with run(program, "--control", str(tmp_path / "control")) as (server, port), contextlib.ExitStack() as stack:
        with loading(program.client, port) as ledger:
            ledger.wait_for(set(server.worker_pids()))
            done = command(tmp_path, "upgrade", "--json")
            assert done.returncode == 0, done.stdout + done.stderr + server.stderr()
            stack.callback(end, int(json.loads(done.stdout)["pid"]))
            assert server.wait(START) == 0
            ledger.wait_for({worker["pid"] for worker in status(tmp_path)["workers"]})
        assert ledger.failures == [], f"{ledger.report()}\n{server.stderr()}"


@parametrized
def test_more_and_fewer_workers_lose_nothing(program: Program) -> None:
    with run(program) as (server, port), loading(program.client, port) as ledger:
        server.signal(signal.SIGTTIN)
        wait_until(lambda: len(server.worker_pids()) == 3, START, "a third worker")
        ledger.wait_for(set(server.worker_pids()))
        for count in (2, 1):
            server.signal(signal.SIGTTOU)
            wait_until(lambda count=count: len(server.worker_pids()) == count, START, f"{count} workers")
        ledger.wait_for_more(20)
        assert ledger.failures == [], f"{ledger.report()}\n{server.stderr()}"


@pytest.mark.slow
@parametrized
def test_recycling_under_load_loses_nothing(program: Program) -> None:
    with run(program, "--max-connections-served", "40") as (server, port), loading(program.client, port) as ledger:
        first = set(server.worker_pids())
        wait_until(lambda: not first & set(server.worker_pids()), START, "the end of the first workers")
        ledger.wait_for_more(100)
        assert ledger.failures == [], f"{ledger.report()}\n{server.stderr()}"
        assert all(gone(pid) for pid in first)
