"""How progress is shown: a line that is drawn again on a terminal, and few lines elsewhere."""

from __future__ import annotations

import io
import os
import pty

import pytest

from prefork.cli.progress import ProgressLine


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_done_within_a_second_prints_no_line() -> None:
    stream, clock = io.StringIO(), Clock()
    line = ProgressLine(stream, clock)
    clock.now += 0.9
    line.update(1, 2, "worker 1 starts")
    line.close()
    assert stream.getvalue() == ""


def test_without_a_terminal_each_change_is_a_line_and_at_most_one_in_a_second() -> None:
    stream, clock = io.StringIO(), Clock()
    line = ProgressLine(stream, clock)
    for step in range(40):
        clock.now += 0.125
        line.update(step // 20, 2, "worker 1\x1b[2J starts", left=step)
    line.close()
    assert stream.getvalue() == "0/2 worker 1\\x1b[2J starts, 7 s left\n1/2 worker 1\\x1b[2J starts, 20 s left\n"


def test_on_a_terminal_one_line_is_drawn_again_and_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    near, far = pty.openpty()
    with os.fdopen(near, "rb", 0) as screen, os.fdopen(far, "w") as terminal:
        clock = Clock()
        line = ProgressLine(terminal, clock)
        line.update(1, 4, "worker 1 starts", left=7)
        clock.now += 3
        line.update(3, 4, "x" * 500)
        line.close()
        written = b""
        while written.count(b"\x1b[K") < 3:
            written += screen.read(65536)
        first, second, erased, _ = written.split(b"\x1b[K")
    assert first == b"\r[#####---------------] 1/4 worker 1 starts, 7 s left (0 s)"
    assert second.startswith(b"\r[###############-----] 3/4 xxx")
    assert len(second) <= 80, "a line that wraps cannot be drawn over"
    assert erased == b"\r"


def test_a_stream_whose_reader_has_gone_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    clock = Clock()
    stream = os.fdopen(writer, "w")
    line = ProgressLine(stream, clock)
    clock.now += 2
    line.update(1, 2, "worker 1 starts")
    line.close()
    with pytest.raises(BrokenPipeError):
        stream.close()
