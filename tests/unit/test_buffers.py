"""The two buffers of a connection give back exactly what was put in, in linear time, whatever the pieces."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from prefork.core.buffer import RUN_LIMIT, ReadBuffer, WriteBacklog
from prefork.core.separators import checked_separator, find_separator

pieces = st.lists(st.binary(max_size=40), max_size=20)


@given(pieces, st.lists(st.integers(1, 60), max_size=40))
def test_the_buffer_returns_the_bytes_that_were_fed(chunks: list[bytes], sizes: list[int]) -> None:
    buffer = ReadBuffer()
    taken = bytearray()
    turns = iter(sizes)
    for chunk in chunks:
        buffer.feed(chunk)
        size = next(turns, 0)
        if size:
            part = buffer.take(size)
            assert type(part) is bytes
            assert len(part) <= size
            taken += part
    taken += buffer.take(buffer.size)
    assert bytes(taken) == b"".join(chunks)
    assert buffer.size == 0


@given(st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"ab\r", b"\n\r\n"]), max_size=30))
def test_a_separator_is_found_where_it_is_however_it_is_cut(chunks: list[bytes]) -> None:
    buffer = ReadBuffer()
    data = b""
    for chunk in chunks:
        buffer.feed(chunk)
        data += chunk
        at = buffer.find(b"\r\n")
        assert at == data.find(b"\r\n")
        if at >= 0:
            assert buffer.take(at + 2) == data[: at + 2]
            data = data[at + 2 :]
        assert buffer.size == len(data)


@given(
    st.lists(st.sampled_from([b"a", b"b", b";", b"--", b"-", b"ab"]), max_size=30),
    st.lists(st.sampled_from([b";", b"--", b"ab;", b"b"]), min_size=1, max_size=3, unique=True),
)
def test_of_several_separators_the_one_that_ends_first_is_found(chunks: list[bytes], wanted: list[bytes]) -> None:
    separators = tuple(wanted)
    buffer = ReadBuffer()
    data = b""
    for chunk in chunks:
        buffer.feed(chunk)
        data += chunk
        _, end = buffer.find_any(separators)
        ends = [data.find(each) + len(each) for each in separators if each in data]
        assert end == min(ends, default=-1)


@given(
    st.lists(st.sampled_from([b"a", b"b", b";", b"--", b"-", b"ab"]), max_size=30),
    st.lists(st.sampled_from([b";", b"--", b"ab;", b"b"]), min_size=1, max_size=3, unique=True),
)
def test_what_holds_no_separator_stays_so_whatever_follows(chunks: list[bytes], wanted: list[bytes]) -> None:
    separator = checked_separator(tuple(wanted) if len(wanted) > 1 else bytearray(wanted[0]))
    buffer = ReadBuffer()
    data, passed = b"", 0
    for chunk in chunks:
        buffer.feed(chunk)
        data += chunk
        at, end = find_separator(buffer, separator)
        if at >= 0:
            assert at >= passed
            assert data[at:end] in wanted
            return
        assert not any(each in data for each in wanted)
        passed = end


@given(st.lists(st.sampled_from([b"a", b"\n", b"bc\nd", b"eeeeee"]), max_size=30), st.integers(0, 6))
def test_lines_equal_those_found_one_by_one(chunks: list[bytes], limit: int) -> None:
    buffer = ReadBuffer()
    data = b""
    for chunk in chunks:
        buffer.feed(chunk)
        data += chunk
        line = buffer.line(limit)
        at = data.find(b"\n")
        assert line == (data[: at + 1] if 0 <= at <= limit else b"")
        data = data[len(line) :]
        assert buffer.size == len(data)
        assert buffer.find(b"c") == data.find(b"c")


def test_a_new_separator_is_searched_for_from_the_start() -> None:
    buffer = ReadBuffer()
    buffer.feed(b"a;b")
    assert buffer.find(b"\n") == -1
    assert buffer.find(b";") == 1
    assert buffer.find_any((b"\n", b"\r")) == (-1, -1)
    assert buffer.find_any((b";", b"b")) == (1, 2)


def _seconds(total: int) -> float:
    """The processor time for `total` bytes that come one by one, with a search after each."""
    buffer = ReadBuffer()
    started = time.process_time()
    for _ in range(total):
        buffer.feed(b"x")
        buffer.find(b"\n")
    buffer.find_any((b"\r\n", b"\n"))
    return time.process_time() - started


def test_a_long_line_byte_by_byte_is_linear_work() -> None:
    """Sixteen times the bytes may cost 16 times the time, not 256 times: half-way between them is the bound."""
    small = min(_seconds(10_000) for _ in range(5))
    assert _seconds(160_000) < small * 64


@given(st.lists(st.binary(max_size=50_000), max_size=12), st.lists(st.integers(1, 70_000), min_size=1, max_size=50))
def test_the_backlog_sends_everything_in_order(chunks: list[bytes], room: list[int]) -> None:
    backlog = WriteBacklog()
    sent = bytearray()
    for at, chunk in enumerate(chunks):
        backlog.append(chunk)
        head = backlog.head()
        step = min(len(head), room[at % len(room)])
        if step:
            sent += head[:step]
            backlog.advance(step)
        # What is kept is what is unsent, and the sent part of one piece.
        assert backlog.size <= backlog.memory <= backlog.size + max(map(len, [*chunks, b"x" * RUN_LIMIT]))
    while backlog.size:
        head = backlog.head()
        assert len(head) > 0
        sent += head
        backlog.advance(len(head))
    assert bytes(sent) == b"".join(chunks)
    assert len(backlog.head()) == 0
    assert backlog.memory == 0


def test_many_small_writes_are_joined_into_few_objects() -> None:
    backlog = WriteBacklog()
    for _ in range(100_000):
        backlog.append(b"ab")
    assert backlog.size == 200_000
    sends = 0
    while backlog.size:
        backlog.advance(len(backlog.head()))
        sends += 1
    assert sends <= 4
