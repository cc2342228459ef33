"""Logs: one record is one line whatever a peer sends, repeats are counted, and failed writes harm nothing."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import logging
import logging.config
import os
import pty
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from helpers.support import run_script
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefork import events
from prefork.net.connection import handler_failed
from prefork.observe.logs import EventLog, configure
from prefork.observe.rates import MAX_FIRST, LogRateLimiter
from prefork.text import escape_ascii

LINE = re.compile(r"(?P<time>\S+) (?P<level>[a-z]+) (?P<origin>supervisor|worker \d+)\[(?P<pid>\d+)\]: (?P<text>.*)")


class EmitEvent(events.Event):
    """An event whose text a test chooses."""

    text: str
    number: float = 1.5

    def __str__(self) -> str:
        return f"note: {escape_ascii(self.text)}"


class Repeated(EmitEvent, level=logging.WARNING, rated=True):
    reason: str = ""


@contextlib.contextmanager
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level, warnings.showwarning, sys.unraisablehook, threading.excepthook
    loggers = set(logging.root.manager.loggerDict)
    try:
        yield
    finally:
        for handler in root.handlers[:]:
            if hasattr(handler, "dispose"):
                handler.dispose()
        root.handlers[:], level, warnings.showwarning, sys.unraisablehook, threading.excepthook = before
        root.setLevel(level)
        for name in logging.root.manager.loggerDict.keys() & loggers:
            logging.getLogger(name).disabled = False


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with logging_as_it_was():
        yield


class Log:
    """Collects what is written to a stream in memory, line by line."""

    def __init__(self, format: str = "text", level: str = "debug", worker: int | None = None) -> None:
        # pytest's own handlers raise for a record that cannot be formatted, and print what was logged.
        logging.getLogger().handlers[:] = []
        self.stream = io.StringIO()
        self.emit = configure(format, level, worker, self.stream)

    def raw(self) -> str:
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return text

    def lines(self) -> list[str]:
        text = self.raw()
        assert text == "" or text.endswith("\n")
        return text.split("\n")[:-1]

    def texts(self) -> list[str]:
        found = [LINE.fullmatch(line) for line in self.lines()]
        assert all(found), found
        return [match["text"] for match in found if match is not None]

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line, parse_constant=pytest.fail) for line in self.lines()]


# --- what a line is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("worker", "origin"), [(None, "supervisor"), (2, "worker 2")])
def test_a_line_has_time_level_origin_and_message(worker: int | None, origin: str) -> None:
    log = Log(worker=worker)
    before = time.time()
    log.emit(events.Ready(4))
    (line,) = log.lines()
    found = LINE.fullmatch(line)
    assert found is not None
    assert (found["level"], found["origin"], found["pid"]) == ("info", origin, str(os.getpid()))
    assert found["text"] == "ready: 4 workers"
    stamp = datetime.fromisoformat(found["time"])
    assert stamp.tzinfo is not None
    assert before - 0.001 <= stamp.timestamp() <= time.time()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", found["time"])


def test_json_has_the_same_and_the_fields_of_the_event() -> None:
    log = Log("json", worker=3)
    log.emit(events.WorkerExited(2, 4711, "signal 9 (SIGKILL)", None))
    (line,) = log.objects()
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "warning",
        "process": "worker",
        "worker": 3,
        "pid": os.getpid(),
        "logger": "prefork",
        "message": "worker 2 (pid 4711) died: signal 9 (SIGKILL)",
        "event": "WorkerExited",
        "fields": {"worker": 2, "pid": 4711, "cause": "signal 9 (SIGKILL)", "delay": None, "connections": 0},
    }


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_service_and_asyncio_log_in_the_same_format(format: str) -> None:
    log = Log(format)
    logging.getLogger("shop.db").warning("connected to %s", "db-1")
    logging.warning("from the root")

    async def main() -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "left\nalone", "exception": ValueError("x\ny")})

    asyncio.run(main())
    if format == "json":
        found = [(line["logger"], line["level"], line["message"]) for line in log.objects()]
        assert ("shop.db", "warning", "connected to db-1") in found
        assert ("root", "warning", "from the root") in found
        assert ("asyncio", "error", "left\nalone") in found
    else:
        lines = log.lines()
        assert any(line.endswith(": shop.db: connected to db-1") for line in lines)
        assert any(line.endswith("]: from the root") for line in lines)
        at = next(i for i, line in enumerate(lines) if line.endswith(r": asyncio: left\nalone"))
        assert [line.strip() for line in lines[at + 1 :]] == ["ValueError: x", "y"]


def test_the_level_applies_to_events_and_to_the_service() -> None:
    log = Log(level="warning")
    log.emit(events.Ready(1))
    logging.getLogger("shop").info("quiet")
    log.emit(events.WorkerExited(0, 1, "exit status 3", 1.0))
    logging.getLogger("shop").error("loud")
    assert [text.split(":")[0] for text in log.texts()] == ["worker 0 (pid 1) died", "shop"]


def test_a_traceback_follows_its_line_indented() -> None:
    log = Log()
    try:
        raise ValueError("first\n2026-01-01T00:00:00.000+00:00 info supervisor[1]: ready: 4 workers")
    except ValueError:
        logging.getLogger("shop").exception("failed")
    log.emit(events.HandlerFailed("127.0.0.1:1", "KeyError: 1", "Traceback\n  File x\nKeyError: 1"))
    first, *lines = log.lines()
    assert first.endswith("shop: failed")
    second = next(i for i, line in enumerate(lines) if "handler failed" in line)
    assert lines[second + 1 :] == ["    Traceback", "      File x", "    KeyError: 1"]
    assert all(line.startswith("    ") for line in lines[:second])
    assert any("info supervisor[1]: ready" in line for line in lines[:second])


def test_a_very_long_traceback_is_cut_in_the_middle() -> None:
    log = Log()
    log.emit(events.HandlerFailed("p", "E", "\n".join(f"line {n}" for n in range(5000))))
    lines = log.lines()
    assert len(lines) < 200
    assert lines[1].strip() == "line 0"
    assert lines[-1].strip() == "line 4999"
    assert any("4880 lines left out" in line for line in lines)


nasty = st.one_of(
    st.text(max_size=300),
    st.text("\n\r\x1b\x00\x07\x08\x7f\x85\x9b\u2028\u2029\u202e\u2066\ud800\udcff[]0m;az", max_size=60),
    st.just("x" * 10_000),
)


@settings(max_examples=300, deadline=None)
@given(nasty, nasty)
def test_no_input_can_forge_a_line_or_control_a_terminal(theirs: str, name: str) -> None:
    with logging_as_it_was():
        log = Log()
        log.emit(EmitEvent(theirs))
        (line,) = log.lines()
        assert LINE.fullmatch(line)
        assert all(" " <= c <= "~" for c in line)
        assert len(line) < 400
        logging.getLogger(f"n.{name[:50]}").error("%s", theirs)
        (line,) = log.lines()
        assert LINE.fullmatch(line)
        assert line.isprintable()
        assert len(line.encode()) < 4 * 4096
        log.emit(events.HandlerFailed("p", "E", theirs))
        head, *rest = log.raw().split("\n")[:-1]
        assert LINE.fullmatch(head)
        assert all(each.startswith("    ") and each.isprintable() for each in rest)


def test_letters_of_every_script_are_not_escaped() -> None:
    log = Log()
    logging.getLogger("shop").info("Grüße, привет, 你好 🙂")
    assert log.texts() == ["shop: Grüße, привет, 你好 🙂"]


@settings(max_examples=200, deadline=None)
@given(nasty)
def test_json_is_one_valid_ascii_object_a_line(theirs: str) -> None:
    with logging_as_it_was():
        log = Log("json")
        log.emit(EmitEvent(theirs))
        logging.getLogger("shop").error(theirs.replace("%", ""), extra={"their": theirs})
        text = log.raw()
        assert all(c == "\n" or " " <= c <= "~" for c in text)
        first, second = text.split("\n")[:-1]
        assert len(first) < 4096
        assert len(second) < 4096
        assert json.loads(first)["event"] == "EmitEvent"
        found = json.loads(second)
        # JSON cannot distinguish two lone surrogates from a pair.
        assert found.get("truncated") or found["their"] == theirs or "\ud800\udcff" in theirs


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def circle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {1, 2}, {(1, 2): 3}, circle(), object(), b"\xff", Unspeakable(), 10**5000],
    ids=lambda value: type(value).__name__,
)
def test_json_is_valid_whatever_the_service_adds(value: object) -> None:
    log = Log("json")
    logging.getLogger("shop").info("text", extra={"added": value, "other": 1})
    (line,) = log.objects()
    assert line["level"] in ("info", "error")
    assert line["process"] == "supervisor"


def test_json_extras_do_not_replace_the_fields_of_prefork() -> None:
    log = Log("json")
    logging.getLogger("shop").info(
        "text", extra={"level": "error", "pid": 1, "time": "never", "process_": 1, "user": "u"}
    )
    logging.getLogger("shop").info({"level": "error", "logger": "prefork", "user": "v"})
    first, second = log.objects()
    for line, user in ((first, "u"), (second, "v")):
        assert (line["level"], line["pid"], line["logger"], line["user"]) == ("info", os.getpid(), "shop", user)
    assert first["time"] != "never"


def test_json_keeps_the_end_of_a_long_traceback() -> None:
    log = Log("json")
    log.emit(events.HandlerFailed("p", "E", "\n".join(f"line {n} {'x' * 60}" for n in range(500))))
    (line,) = log.objects()
    assert line["truncated"] is True
    assert line["event"] == "HandlerFailed"
    assert "line 499" in line["traceback"]
    assert len(line["traceback"]) > 1000


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_log_call_that_cannot_be_formatted_is_reported_in_one_line(format: str) -> None:
    log = Log(format)
    logging.getLogger("shop").info("%d apples", "no\nnumber")
    logging.getLogger("shop").info("%s", Unspeakable())
    lines = log.lines()
    assert len(lines) == 2
    assert all("could not be formatted" in line and "test_logs.py" in line for line in lines)
    assert "TypeError" in lines[0]
    assert "no words" in lines[1]


# --- how often --------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_repeated_event_gets_one_line_a_second_which_counts_the_others() -> None:
    log, clock = Log(level="info"), Clock()
    emit = EventLog(logging.getLogger("prefork"), clock)
    for _ in range(1000):
        emit(Repeated("x"))
    assert log.texts() == ["note: x"]
    clock.now += 1
    emit(Repeated("y"))
    emit(Repeated("z"))
    assert log.texts() == ["note: y (and 999 more like it)"]


def test_different_causes_do_not_hide_each_other() -> None:
    log = Log(level="info")
    for _ in range(10):
        log.emit(events.HandlerFailed("p", "KeyError: a"))
        log.emit(events.HandlerFailed("p", "ValueError: b"))
        log.emit(events.AcceptPaused("l", "too many open files"))
    assert len(log.lines()) == 3


LETTERS = str.maketrans("0123456789", "abcdefghij")


def test_a_flood_of_causes_gets_a_few_lines_a_second() -> None:
    log, clock = Log(level="info"), Clock()
    emit = EventLog(logging.getLogger("prefork"), clock)
    for n in range(20_000):
        emit(Repeated("x", reason=f"cause {n}".translate(LETTERS)))
    shown = len(log.lines())
    assert shown == MAX_FIRST
    emit(events.HandlerFailed("p", "KeyError: a"))
    told = log.texts()
    assert any("KeyError" in text for text in told)
    clock.now += 60
    emit(events.Drained(3, 0))
    told += log.texts()
    assert len(told) <= 8, "the lines about suppressed events are no flood either"
    assert sum(int(text.split()[0]) for text in told if " more of " in text) == 20_000 - shown


def test_different_numbers_are_one_cause() -> None:
    """Each of many slow readers has its own number of unsent bytes."""
    log, clock = Log(level="info"), Clock()
    emit = EventLog(logging.getLogger("prefork"), clock)
    for n in range(100):
        emit(events.ConnectionAborted("p", f"{n} bytes unsent, of {5 * n}"))
    assert len(log.lines()) == 1
    clock.now += 60
    emit(events.ConnectionAborted("p", "7 bytes unsent, of 8"))
    assert log.texts() == ["aborted connection of p: 7 bytes unsent, of 8 (and 99 more like it)"]


def test_suppressed_events_are_counted_even_if_none_of_their_cause_follows() -> None:
    log, clock = Log(level="info"), Clock()
    emit = EventLog(logging.getLogger("prefork"), clock)
    for _ in range(3):
        emit(Repeated("x", reason="KeyError: 1"))
    log.raw()
    clock.now += 60
    emit(events.Drained(3, 0))
    assert log.texts() == [
        "2 more of Repeated (KeyError) were not logged",
        "drained: 3 connections closed, none aborted",
    ]
    clock.now += 60
    emit(events.Drained(3, 0))
    assert len(log.lines()) == 1


def test_the_sum_is_due_when_the_interval_is_over() -> None:
    log, clock = Log(level="info"), Clock()
    emit = EventLog(logging.getLogger("prefork"), clock)
    told: list[int] = []
    emit.on_held = lambda: told.append(1)
    assert emit.next_due() is None
    for _ in range(4):
        emit(Repeated("x"))
    assert (emit.next_due(), told) == (clock.now + 1, [1])
    emit.flush()
    assert log.texts() == ["note: x"]
    clock.now += 1
    emit.flush()
    assert log.texts() == ["3 more of Repeated were not logged"]
    assert emit.next_due() is None
    emit(Repeated("x"))
    emit(Repeated("x"))
    emit.flush(everything=True)
    assert log.texts() == ["note: x", "1 more of Repeated was not logged"]
    assert told == [1, 1]


def test_two_mistakes_of_one_kind_are_two_causes() -> None:
    def mistakes() -> Iterator[Exception]:
        for key in "ab":
            try:
                {}[key]
            except KeyError as exc:
                yield exc
        try:
            {}["c"]
        except KeyError as exc:
            yield exc

    log = Log(level="info")
    for exc in mistakes():
        log.emit(handler_failed("p", exc))
    assert [line.rpartition(" ")[2] for line in log.lines() if "handler failed" in line] == ["'a'", "'c'"]


@pytest.mark.parametrize("unlimited", [False, True])
def test_the_level_debug_and_a_developer_hold_nothing_back(unlimited: bool) -> None:
    log = Log(level="info" if unlimited else "debug")
    emit = EventLog(logging.getLogger("prefork"), unlimited=unlimited)
    for _ in range(50):
        emit(Repeated("x"))
    assert len(log.lines()) == 50
    assert emit.next_due() is None


@pytest.mark.parametrize("formatter", [logging.Formatter(), logging.Formatter("%(message)s -- %(levelname)s")])
def test_the_services_own_handlers_get_the_traceback_and_no_forged_line(formatter: logging.Formatter) -> None:
    log = Log(level="info")
    theirs = logging.StreamHandler(io.StringIO())
    theirs.setFormatter(formatter)
    kept: list[logging.LogRecord] = []
    theirs.addFilter(lambda record: kept.append(record) or True)  # type: ignore[func-returns-value]  # for its effect
    logger = logging.getLogger("prefork")
    logger.addHandler(theirs)
    try:
        raise ValueError("sent by a peer\n2026-11-27T00:00:00 info \x1b[31m")
    except ValueError as exc:
        error = exc
    try:
        log.emit(handler_failed("1.2.3.4:5", error))
    finally:
        logger.removeHandler(theirs)
    lines = theirs.stream.getvalue().splitlines()
    assert "handler failed for 1.2.3.4:5: ValueError" in lines[0]
    assert lines[1] == "    Traceback (most recent call last):"
    assert any("test_the_services_own_handlers" in line for line in lines)
    assert all(line.startswith("    ") and line.isprintable() for line in lines[1:-1])
    (record,) = kept
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_unrated_events_are_all_logged() -> None:
    log = Log()
    for _ in range(50):
        log.emit(events.WorkerExited(0, 1, "exit status 1", 0.0))
    assert len(log.lines()) == 50


def test_json_has_the_suppressed_count() -> None:
    log, clock = Log("json", "info"), Clock()
    emit = EventLog(logging.getLogger("prefork"), clock)
    for _ in range(5):
        emit(Repeated("x"))
    clock.now += 1
    emit(Repeated("x"))
    first, second = log.objects()
    assert "suppressed" not in first
    assert second["suppressed"] == 4


happenings = st.lists(
    st.tuples(st.sampled_from("AB"), st.text("xyz", max_size=2), st.floats(0, 2.0, allow_nan=False)), max_size=200
)


@example([("A", d, t) for d, t in (("", 0.0), ("", 0.0), ("y", 0.0), ("x", 1.0), ("xx", 0.5), ("xx", 0.5))], 2, 2, 0)
@given(happenings, st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_every_event_is_admitted_or_counted_once(
    happened: list[tuple[str, str, float]], causes: int, most: int, first: int
) -> None:
    rates: LogRateLimiter[str] = LogRateLimiter(interval=1.0, per_kind=most, max_causes=causes, max_first=first)
    now, admitted, counted = 0.0, [], 0
    for kind, detail, passed in happened:
        now += passed
        before = rates.admit(kind, detail, "", now)
        if before is not None:
            admitted.append((kind, detail, now))
            counted += before
        assert len(rates) <= causes + 2
    assert len(admitted) + counted + sum(count for _, _, count in rates.flush_expired(now + 10)) == len(happened)
    assert rates.flush_expired(now + 10) == []
    # `at + interval` may be rounded up beyond a time whose difference to `at` is the interval.
    interval = 1.0 - 1e-9
    for kind, detail, at in admitted:
        same = [t for k, d, t in admitted if (k, d) == (kind, detail) and at <= t < at + interval]
        assert len(same) == 1
        assert len([t for k, _, t in admitted if k == kind and at <= t < at + interval]) <= 2 * most + first


# --- where it goes ----------------------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, io.TextIOWrapper]]:
    reader, writer = os.pipe()
    with contextlib.closing(os.fdopen(writer, "w")) as stream:
        try:
            yield reader, stream
        finally:
            with contextlib.suppress(OSError):
                os.close(reader)


def test_configuring_again_replaces_the_handler_and_leaks_nothing() -> None:
    with pipe() as (reader, stream):
        configure("text", "info", None, stream)
        before = descriptors()
        for worker in range(5):
            emit = configure("text", "info", worker, stream)
        assert descriptors() == before
        emit(events.Ready(1))
        data = os.read(reader, 65536)
        assert data.count(b"\n") == 1
        assert b"worker 4[" in data


def test_the_inherited_descriptor_keeps_its_flags() -> None:
    with pipe() as (_, stream):
        flags = fcntl.fcntl(stream.fileno(), fcntl.F_GETFL)
        emit = configure("text", "info", None, stream)
        emit(events.Ready(1))
        assert fcntl.fcntl(stream.fileno(), fcntl.F_GETFL) == flags
        assert not flags & os.O_NONBLOCK


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_does_not_read_costs_lines_but_no_time(blocking: bool) -> None:
    # In a process of its own, because if it blocks only the deadline ends it.
    done = run_script(
        f"""
        import os, sys, time
        from prefork import events
        from prefork.observe.logs import configure
        reader, writer = os.pipe()
        os.set_blocking(writer, {blocking})
        emit = configure("text", "info", None, os.fdopen(writer, "w"))
        for n in range(5000):
            emit(events.Ready(n))
        data = os.read(reader, 1 << 20)
        assert data.endswith(b"\\n"), data[-100:]
        written = data.count(b"\\n")
        emit(events.Ready(9999))
        told, last = os.read(reader, 1 << 20).decode().splitlines()
        assert f"warning supervisor[{{os.getpid()}}]: {{5000 - written}} log records were lost: " in told, told
        assert last.endswith("ready: 9999 workers"), last
        """,
        deadline=30,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("environment", "terminal", "coloured"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ],
)
def test_levels_have_colours_on_a_terminal(
    environment: dict[str, str], terminal: bool, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    reader, writer = pty.openpty() if terminal else os.pipe()
    with os.fdopen(writer, "w") as stream:
        emit = configure("text", "info", None, stream)
        emit(events.ListenerBroken("l", "it broke"))
        data = os.read(reader, 4096).decode()
    os.close(reader)
    assert (" \x1b[31merror\x1b[0m " in data) == coloured
    assert data.count("\x1b[") == 2 * coloured


def test_json_has_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    log = Log("json")
    log.emit(events.ListenerBroken("l", "it broke"))
    assert log.objects()[0]["level"] == "error"


def test_what_is_not_written_is_counted() -> None:
    dropped: list[int] = []
    with pipe() as (_, stream):
        fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, 4096)
        emit = configure("text", "info", None, stream, on_dropped=lambda: dropped.append(1))
        for _ in range(5):
            emit(Repeated("held back"))
        assert len(dropped) == 4
        for n in range(500):
            emit(events.Ready(n))
    assert 400 < len(dropped) < 504


def test_a_stopped_terminal_does_not_stop_the_process() -> None:
    done = run_script(
        """
        import os, pty
        from prefork import events
        from prefork.observe.logs import configure
        reader, writer = pty.openpty()
        emit = configure("text", "info", None, os.fdopen(writer, "w"))
        for n in range(20000):
            emit(events.Ready(n))
        """,
        deadline=30,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_closed_the_pipe_raises_nothing() -> None:
    with pipe() as (reader, stream):
        emit = configure("text", "info", None, stream)
        os.close(reader)
        for _ in range(10):
            emit(events.Ready(1))
            logging.getLogger("shop").error("x")


def test_a_full_disk_raises_nothing() -> None:
    with open("/dev/full", "w") as stream:
        emit = configure("text", "info", None, stream)
        emit(events.Ready(1))
        logging.getLogger("shop").error("x")


def test_a_line_cut_by_a_full_disk_is_ended_before_the_next(tmp_path: Any) -> None:
    # RLIMIT_FSIZE cuts a write short as a full disk does, and can be raised again.
    done = run_script(
        f"""
        import resource, signal
        from prefork import events
        from prefork.observe.logs import configure
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        stream = open({str(tmp_path / "log")!r}, "w")
        emit = configure("text", "info", None, stream)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        emit(events.Ready(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        emit(events.Ready(2))
        emit(events.Ready(3))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        emit(events.Ready(4))
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, torn, told, last = (tmp_path / "log").read_text().splitlines()
    assert first.endswith("ready: 1 worker")
    assert len(first) + 1 + len(torn) == 100
    assert told.endswith("2 log records were lost: file too large")
    assert last.endswith("ready: 4 workers")


def test_a_closed_stream_raises_nothing() -> None:
    stream = io.StringIO()
    emit = configure("text", "info", None, stream)
    stream.close()
    emit(events.Ready(1))
    logging.getLogger("shop").error("x")


def test_logging_works_without_standard_error() -> None:
    done = run_script(
        """
        import sys
        sys.stderr = None
        from prefork import events
        from prefork.observe.logs import configure
        configure("text", "info")(events.Ready(1))
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_standard_error_may_be_a_socket() -> None:
    # As under systemd, where it is journald's socket.
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("w") as stream:
        emit = configure("text", "info", None, stream)
        emit(events.Ready(1))
        assert ours.recv(1000).endswith(b"ready: 1 worker\n")
        for n in range(3_000):
            emit(events.Ready(n))
        assert theirs.gettimeout() is None


def test_processes_that_share_a_pipe_do_not_interleave_their_lines() -> None:
    script = """
        import logging, sys
        from prefork import events
        from prefork.observe.logs import configure
        emit = configure("text", "info", int(sys.argv[1]))
        emit(events.Ready(1))
        for n in range(300):
            failure = ValueError("\\n".join(["x" * 300] * 30))
            logging.getLogger("shop").error("y" * 3000, exc_info=(ValueError, failure, None))
    """
    reader, writer = os.pipe()
    workers = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(n)], stderr=writer) for n in range(3)
    ]
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        lines = stream.read().decode().split("\n")[:-1]
    assert [worker.wait(30) for worker in workers] == [0, 0, 0]
    assert len(lines) > 100
    for line in lines:
        if line.startswith("    "):
            assert re.fullmatch(" {4}(ValueError: )?x{300}", line)
        else:
            found = LINE.fullmatch(line)
            assert found is not None, line
            assert re.fullmatch(r"shop: y{2045}\.\.\.|ready: 1 worker|\d+ log records? w.* lost: .*", found["text"])


# --- what Python prints by itself, and what a service does to logging -------------------------------------------------


def test_warnings_are_one_line() -> None:
    log = Log()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = warnings.showwarning
        configure("text", "info", None, log.stream)
        warnings.warn("mind\nthe gap", UserWarning, stacklevel=1)
    (text,) = log.texts()
    assert text.startswith(r"py.warnings: UserWarning: mind\nthe gap (")


def test_exceptions_in_threads_and_destructors_are_records() -> None:
    log = Log()

    class Grave:
        def __del__(self) -> None:
            raise ValueError("in\x1b[31m vain")

    def fail() -> None:
        raise KeyError("lost\x1b[31m")

    thread = threading.Thread(target=fail, name="helper")
    thread.start()
    thread.join()
    threading.Thread(target=sys.exit).start()
    del thread
    Grave()
    text = log.raw()
    assert "thread helper failed: KeyError" in text
    assert "Exception ignored" in text
    assert "\x1b" not in text
    assert all(LINE.fullmatch(line) or line.startswith("    ") for line in text.split("\n")[:-1])


def test_a_service_that_disables_other_loggers_still_gets_events() -> None:
    stream = io.StringIO()
    emit = configure("text", "info")
    logging.config.dictConfig(
        {
            "version": 1,
            "handlers": {"theirs": {"class": "logging.StreamHandler", "stream": stream}},
            "root": {"handlers": ["theirs"], "level": "INFO"},
        }
    )
    emit(events.Ready(3))
    assert "ready: 3 workers" in stream.getvalue()


def test_a_handler_of_the_service_that_raises_does_not_reach_the_server() -> None:
    log = Log()

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("broken")

    broken = Broken()
    logging.getLogger("prefork").addHandler(broken)
    try:
        log.emit(events.Ready(1))
    finally:
        logging.getLogger("prefork").removeHandler(broken)


def test_other_handlers_stay_except_one_that_would_log_everything_twice(tmp_path: Any) -> None:
    done = run_script(
        f"""
        import logging
        from prefork import events
        from prefork.observe.logs import configure
        logging.basicConfig(level="INFO")
        logging.getLogger().addHandler(logging.FileHandler({str(tmp_path / "own.log")!r}))
        configure("text", "info")(events.Ready(1))
        """
    )
    assert done.returncode == 0
    assert done.stderr.count("ready: 1 worker") == 1
    assert (tmp_path / "own.log").read_text() == "ready: 1 worker\n"


def test_a_jump_of_the_wall_clock_does_not_affect_rates() -> None:
    done = run_script(
        """
        import time
        from prefork import events
        from prefork.observe.logs import configure
        emit = configure("text", "info")
        for jump in (0, 3600, -86400):
            real = time.time
            time.time = lambda jump=jump, real=real: real() + jump
            for _ in range(100):
                emit(events.AcceptPaused("l", "too many open files"))
            time.time = real
        """
    )
    assert done.returncode == 0
    assert done.stderr.count("paused") <= 2, done.stderr


def test_the_text_format_does_not_need_the_json_library() -> None:
    done = run_script(
        """
        import sys
        from prefork.observe.logs import configure
        configure("text", "info")
        assert "pythonjsonlogger" not in sys.modules
        assert "asyncio" not in sys.modules
        configure("json", "info")
        assert "pythonjsonlogger" in sys.modules
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
