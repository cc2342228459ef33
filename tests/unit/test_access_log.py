"""The access log: a line is one line whatever a peer sends; a reader that does not read costs lines, and no time."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers.streams import World
from hypothesis import given
from hypothesis import strategies as st

from prefork.assembly.access_log import open_access_log
from prefork.core.account import CloseReason
from prefork.core.ended_connection import EndedConnection
from prefork.errors import ConfigError
from prefork.events import Event
from prefork.observe import access_log
from prefork.observe.access_log import AccessLog, json_format, text_format
from prefork.observe.output import Output
from prefork.observe.reopen import LogFiles

NOW = 1795777442.8509
ENDED = EndedConnection(
    7, ("203.0.113.7", 51234), ("192.0.2.1", 9000), 12.3456, 1024, 2048, "TLSv1.3", CloseReason.IDLE_TIMEOUT
)


def test_a_line_of_text_has_ten_words() -> None:
    line = text_format(3)(ENDED, NOW).decode()
    stamp, rest = line.split(" ", 1)
    assert re.fullmatch(r"2026-11-2\dT\d\d:\d\d:02\.850[+-]\d\d:\d\d", stamp)
    assert rest == "203.0.113.7:51234 192.0.2.1:9000 12.346 1024 2048 TLSv1.3 idle_timeout 3 -\n"
    missing = ENDED._replace(address="", local=None, tls="", seconds=0.0, reason=CloseReason.MAX_CONNECTIONS)
    assert text_format(0)(missing, NOW).decode().split(" ", 1)[1] == "unix - 0.000 1024 2048 - max_connections 0 -\n"
    proxied = ENDED._replace(proxy=("10.0.0.1", 4))
    assert text_format(0)(proxied, NOW).decode().split(" ")[1::8] == ["203.0.113.7:51234", "10.0.0.1:4\n"]
    assert json.loads(json_format(0)(proxied, NOW))["proxy"] == "10.0.0.1:4"


def test_a_line_of_json_has_the_same() -> None:
    values = json.loads(json_format(3)(ENDED, NOW))
    assert values.pop("time").startswith("2026-11-2")
    assert values == {
        "peer": "203.0.113.7:51234",
        "listener": "192.0.2.1:9000",
        "seconds": 12.3456,
        "received": 1024,
        "sent": 2048,
        "tls": "TLSv1.3",
        "reason": "idle_timeout",
        "worker": 3,
        "pid": os.getpid(),
        "proxy": None,
    }


@given(st.one_of(st.binary(max_size=107), st.text(max_size=107)))
def test_the_name_of_a_peers_socket_is_one_printable_word(name: bytes | str) -> None:
    line = text_format(0)(ENDED._replace(address=name), NOW).decode("ascii")
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert len(line.split(" ")) == 10
    assert json.loads(json_format(0)(ENDED._replace(address=name), NOW))["worker"] == 0


@dataclass
class Loop:
    """Timers that a test calls."""

    timers: list[Any] = field(default_factory=list)

    def call_later(self, delay: float, callback: Any) -> Any:
        self.timers.append(callback)
        return self

    def cancel(self) -> None:
        self.timers.clear()

    def run(self) -> None:
        due, self.timers = self.timers, []
        for each in due:
            each()


@dataclass
class Logging:
    """An access log, and what it said."""

    fd: int
    loop: Loop = field(default_factory=Loop)
    dropped: int = 0
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = AccessLog(
            self.loop,  # type: ignore[arg-type]  # the one method that it calls
            Output(self.fd),
            text_format(0),
            self.events.append,
            self._on_dropped,
        )

    def __enter__(self) -> Logging:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close()

    def _on_dropped(self, lines: int) -> None:
        self.dropped += lines


@pytest.fixture
def world() -> World:
    return World("asyncio", "tcp")


def lines_of(data: bytes) -> int:
    assert all(len(line.split(b" ")) == 10 for line in data.splitlines()), data
    return data.count(b"\n")


@contextlib.contextmanager
def pipe(size: int = 4096) -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
    try:
        yield reader, writer
    finally:
        for fd in (reader, writer):
            with contextlib.suppress(OSError):
                os.close(fd)


def test_lines_are_written_together_a_moment_later() -> None:
    with pipe(65536) as (reader, writer), Logging(writer) as found:
        for _ in range(20):
            found.log(ENDED)
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        assert len(found.loop.timers) == 1
        found.loop.run()
        assert lines_of(os.read(reader, 65536)) == 20
        assert found.loop.timers == []
        for _ in range(access_log.FLUSH_AT // 80):
            found.log(ENDED)
        assert lines_of(os.read(reader, 65536)) > 100, "without the timer"


def test_a_reader_that_does_not_read_loses_lines_which_are_counted() -> None:
    with pipe() as (reader, writer), Logging(writer) as found:
        began = time.thread_time()
        for _ in range(20_000):
            found.log(ENDED)
        found.loop.run()
        assert time.thread_time() - began < 5, "20,000 lines take 0.1 s"
        assert len(found.log._buffer) <= access_log.MAX_BUFFERED
        (event,) = found.events
        assert str(event) == f"access log: {found.dropped} lines lost: its reader does not read"
        read = lines_of(os.read(reader, 65536))
        # The reader reads again: what was kept comes, in whole lines.
        os.set_blocking(reader, False)
        for _ in range(1000):
            found.loop.run()
            with contextlib.suppress(BlockingIOError):
                read += lines_of(os.read(reader, 65536))
            if not found.loop.timers:
                break
        assert read + found.dropped == 20_000


def test_the_end_writes_what_the_reader_takes_and_counts_the_rest() -> None:
    with pipe() as (reader, writer), Logging(writer) as found:
        for _ in range(100):
            found.log(ENDED)
        found.log.close()
        assert lines_of(os.read(reader, 65536)) + found.dropped == 100
        assert 0 < found.dropped < 100


@pytest.mark.parametrize("where", ["/dev/full", "closed", "no reader"])
def test_a_failed_write_raises_nothing_and_is_counted(where: str, tmp_path: Path) -> None:
    with pipe() as (reader, writer):
        fd = os.open("/dev/full", os.O_WRONLY) if where == "/dev/full" else os.dup(writer)
        if where == "closed":
            os.close(fd)
        else:
            os.close(reader)
            os.close(writer)
        with Logging(fd) as found:
            for _ in range(3):
                found.log(ENDED)
            found.loop.run()
            reasons = {
                "/dev/full": "no space left on device",
                "closed": "bad file descriptor",
                "no reader": "broken pipe",
            }
            assert [str(event) for event in found.events] == [f"access log: 3 lines lost: {reasons[where]}"]
            assert found.dropped == 3
            found.log(ENDED)
            found.loop.run()
            assert found.dropped == 4
        with contextlib.suppress(OSError):
            os.close(fd)


def test_a_socket_and_a_file_are_written_too(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other, Logging(one.fileno()) as found:
        found.log(ENDED)
        found.loop.run()
        assert lines_of(other.recv(4096)) == 1
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with Logging(fd) as found:
        for _ in range(5000):
            found.log(ENDED)
        found.log.close()
        os.close(fd)
        assert lines_of(path.read_bytes()) == 5000
        assert not found.dropped


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing/log", "no such file or directory"),
        (".", "is a directory"),
        ("/dev/null", "not a regular file"),
        ("link", "has a second name"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(
    path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").touch()
    os.link(tmp_path / "log", tmp_path / "link")
    with pytest.raises(ConfigError, match=f"^--access-log {re.escape(path)}: .*{reason}"):
        open_access_log(LogFiles({}), path, None)


async def test_it_runs_on_a_loop(world: World) -> None:
    with pipe() as (reader, writer):
        log = AccessLog(asyncio.get_running_loop(), Output(writer), text_format(0), lambda _: None, lambda _: None)
        log(ENDED)
        os.set_blocking(reader, False)
        data = b""
        async with asyncio.timeout(10):
            while not data:
                await asyncio.sleep(0.02)
                with contextlib.suppress(BlockingIOError):
                    data = os.read(reader, 4096)
        assert lines_of(data) == 1
        log.close()
