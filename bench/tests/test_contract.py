"""Peers that not every Python has: why one is absent, and what is left out of a run for one that fails a work."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
from helpers.support import need

from bench import contract, memory, peers, roster, works
from bench.build import Programs, build
from bench.contract import Refusal
from bench.generator import Generator

CORE = max(os.sched_getaffinity(0))
YOUNG = roster.LOOPS[0]
#: Echoes, but stops answering a connection that has sent 60,000 bytes.
DEAF = """
import asyncio
class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.size = transport, 0
    def data_received(self, data):
        self.size += len(data)
        if self.size < 60000:
            self.transport.write(data)
async def main():
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    need("cc")
    return build(tmp_path_factory.mktemp("bench"))


@dataclasses.dataclass(frozen=True, slots=True)
class Scripted(roster.Contestant):
    """A contestant whose server is a script."""

    script: str = ""

    def command(self, build: Path, handler: str, tls: tuple[str, str] | None) -> list[str]:
        return [sys.executable, "-c", self.script]


def tried(script: str, programs: Programs, chosen: list[works.Work]) -> tuple[list[roster.Contestant], list[str]]:
    young = Scripted("young", "young loop", "", needs="young", script=script)
    generator = Generator(programs.load, None)
    return contract.examine(
        [roster.FLOOR, young], chosen, generator, programs.folder, None, CORE, lambda what, done=0, total=0: None
    )


def small(work: works.Work, title: str, size: int = 1024) -> works.Work:
    return dataclasses.replace(work, connections=1, size=size, name=title, title=title)


@pytest.mark.slow
def test_a_peer_that_hangs_keeps_the_works_that_it_does(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "PATIENCE", 1.0)
    chosen = [small(works.ECHO, "huge", 65536), small(works.CLOSE, "fine")]
    (floor, young), lines = tried(DEAF, programs, chosen)
    assert floor is roster.FLOOR
    assert [work.title for work in chosen if young.does(work)] == ["fine"]
    (line,) = lines
    assert line.startswith("young loop, huge: nothing has happened for 1 s")


def test_a_peer_that_does_not_start_is_left_out_with_its_words(programs: Programs) -> None:
    remaining, lines = tried("raise NotImplementedError('no sockets')", programs, [small(works.ECHO, "echo")])
    assert remaining == [roster.FLOOR]
    assert lines == ["young loop, every work: young does not serve: NotImplementedError: no sockets"]


def test_after_some_failures_the_rest_is_left_out_untried(programs: Programs) -> None:
    wrong = DEAF.replace("self.transport.write(data)", "self.transport.write(b'!' * len(data))")
    remaining, lines = tried(wrong, programs, [small(works.ECHO, title) for title in "abcd"])
    assert remaining == [roster.FLOOR]
    assert [line.partition(":")[0] for line in lines] == ["young loop, a; b", "young loop, c; d"]
    assert "wrong bytes" in lines[0]
    assert "not tried" in lines[1]


def test_a_loop_without_tls_is_left_out_of_tls_alone() -> None:
    refusals = [Refusal(work, "no TLS") for work in works.FULL if work.tls]
    left = contract.kept(YOUNG, works.FULL, refusals)
    assert left is not None
    assert left.does(works.ECHO)
    assert not left.does(works.TLS_ECHO)
    assert memory.refused(left, tls=True)
    assert not memory.refused(left, tls=False)
    assert contract.told(YOUNG, works.FULL, refusals) == [f"{YOUNG.label}, every work by TLS: no TLS"]


@pytest.mark.parametrize(
    ("complaints", "said"),
    [
        (
            "WARNING: x\nERROR: Ignored the following versions that require a different python version: "
            "0.1.0 Requires-Python >=3.12\nERROR: Could not find a version that satisfies the requirement blazio",
            "it requires Python >=3.12",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement talyn>=0.10 (from versions: none)\n"
            "ERROR: No matching distribution found for talyn>=0.10",
            "there is no release of it for this Python and machine",
        ),
        ("ERROR: the disk is full\n", "the disk is full"),
        ("", "pip said nothing about it"),
    ],
)
def test_the_reason_of_a_failed_install_is_one_line(complaints: str, said: str) -> None:
    assert peers.cause(complaints) == said


def test_an_absent_peer_has_the_reason_of_its_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "REASONS", tmp_path / "not-installed.json")
    assert peers.absent("json") == ""
    assert "make bench installs it" in peers.absent("no_such_loop")
    peers.REASONS.write_text(json.dumps({"no_such_loop": "it is too young"}))
    assert peers.absent("no_such_loop") == "it is too young"


def test_each_young_loop_is_a_requirement_of_its_own() -> None:
    assert {peers.name_of(each) for each in peers.wanted()} == {each.needs for each in roster.ALL if each.needs}
