"""Each server of the catalogue runs by itself, and its client is served: what the other tests here rest on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from programs.catalogue import Program
from programs.running import by_itself, need_installed, parametrized

pytestmark = pytest.mark.slow


@parametrized
def test_a_program_serves_its_client(program: Program, tmp_path: Path) -> None:
    need_installed(program)
    with by_itself(program, tmp_path) as running:
        assert [program.client.request(running.port) for _ in range(3)] == [running.process.pid] * 3


@parametrized
def test_an_idle_connection_hinders_no_other(program: Program, tmp_path: Path) -> None:
    need_installed(program)
    with by_itself(program, tmp_path) as running, program.client.hold(running.port) as transact:
        assert transact() == program.client.request(running.port) == transact() == running.process.pid


@parametrized
def test_a_program_ends_when_it_is_told_to(program: Program, tmp_path: Path) -> None:
    need_installed(program)
    with by_itself(program, tmp_path) as running:
        program.client.request(running.port)
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)
