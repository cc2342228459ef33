"""What `prefork top` shows, without a terminal: figures, rates, tables, pages."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from typing import Any

import pytest
from helpers import canned
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.console.connections import Connections
from prefork.console.joining import Row
from prefork.console.top import connections, figures, pages, workers
from prefork.console.top.facts import Snapshot, read_status
from prefork.console.top.keys import COMMANDS, help_lines
from prefork.console.top.lines import EMPTY, Line, Tone, fit, plain, spread, text_of, width_of, wrap
from prefork.console.top.model import TABLES, Model, View
from prefork.console.top.rates import change, compare, happened
from prefork.console.top.source import Reading
from prefork.console.top.table import (
    Cursor,
    Order,
    arrange,
    follow,
    heading,
    lay_out,
    line_of,
    move,
    neighbour,
    select,
    turn,
)

NUMBERS = st.one_of(st.none(), st.integers(-10, 2**63), st.floats())


def snapshot(seconds: float = 0.0, **changes: Any) -> Snapshot:
    return read_status(canned.status(seconds=seconds) | changes, seconds, canned.CLOCK + seconds)


def rows(number: int = 30) -> list[Row]:
    return canned.connections(number).rows


def model(view: View = View.WORKERS, number: int = 30, **changes: Any) -> Model:
    """Return a view that has had two readings, one second apart."""
    shown = Model(view=view)
    for second in (0.0, 1.0):
        found = canned.connections(number, second) if view is View.CONNECTIONS else None
        shown.take(Reading(snapshot(second, **changes), found), f"12:00:0{second:.0f}")
    return shown


def text(lines: list[Line]) -> str:
    return "\n".join(map(text_of, lines))


def screen(shown: Model, width: int = 80, height: int = 24) -> list[Line]:
    detail = pages.detail(shown, width)
    head = pages.head(shown, width)
    body = pages.body(shown, width, height - len(head) - len(detail) - 1)
    return [*head, *body, *detail, pages.foot(shown, width)]


# --- figures ----------------------------------------------------------------------------------------------------------


@given(NUMBERS)
def test_every_number_has_a_bounded_width(value: float | None) -> None:
    for show in (figures.count, figures.size, figures.rate, figures.share):
        assert 1 <= len(show(value)) <= figures.NUMBER_WIDTH, show
    for show in (figures.age, figures.delay):
        assert 1 <= len(show(value)) <= figures.TIME_WIDTH + 1, show


@pytest.mark.parametrize(
    ("show", "value", "expected"),
    [
        (figures.count, 999.4, "999"),
        (figures.count, 999.5, "1.0K"),
        (figures.count, 9_949, "9.9K"),
        (figures.count, 9_951, "10K"),
        (figures.count, 3_400_000, "3.4M"),
        (figures.size, 1_000, "1.0K"),
        (figures.size, 1_023 * 1024, "1.0M"),
        (figures.rate, 0, "0"),
        (figures.rate, 0.001, "0.1"),
        (figures.rate, 0.3, "0.3"),
        (figures.rate, 1_234, "1.2K"),
        (figures.share, 1.234, "123%"),
        (figures.age, 59.9, "59s"),
        (figures.age, 312, "5m12s"),
        (figures.age, 11_520, "3h12m"),
        (figures.age, 86_400 * 9 + 23 * 3600, "9d23h"),
        (figures.age, math.inf, "9999y"),
        (figures.delay, 0.0004, "0.4ms"),
        (figures.delay, 0.9996, "1.0s"),
        (figures.delay, 0.012, "12ms"),
    ],
)
def test_numbers_and_times_read_as_people_write_them(show: Any, value: float, expected: str) -> None:
    assert show(value) == expected


@given(st.integers(0, 2**60), st.integers(0, 2**60))
def test_a_larger_number_is_never_shown_as_a_smaller_one(one: int, two: int) -> None:
    small, large = sorted((one, two))
    for base, show in ((1000, figures.count), (1024, figures.size)):
        assert _value(show(small), base) <= _value(show(large), base) * 1.000001


def _value(shown: str, base: int) -> float:
    unit = "KMGTPE".find(shown[-1]) + 1
    return float(shown.rstrip("KMGTPE")) * base**unit


@given(st.text("abc:", max_size=40), st.integers(0, 30))
def test_a_text_is_cut_to_its_width_and_keeps_both_ends(value: str, width: int) -> None:
    shown = figures.clip(value, width)
    assert len(shown) == min(len(value), width)
    if 3 <= width < len(value):
        assert value.startswith(shown[: width // 2])
        assert value.endswith(shown[width // 2 + 1 :])
    assert len(figures.words(value, width)) <= width


def test_words_are_left_out_from_the_end() -> None:
    assert figures.words("backoff 12s", 8) == "backoff"
    assert figures.words("paused: max_connections", 8) == "paused"
    assert figures.words("connections", 7) == "connect"


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.integers(1, 40))
def test_a_bar_has_its_width_and_shows_whatever_is_more_than_nothing(part: float, whole: float, width: int) -> None:
    bar = figures.bar(part, whole, width)
    assert len(bar) == width
    assert (figures.FULL_CELL in bar) == (part > 0 and whole > 0)


def test_a_quantile_is_the_bucket_that_reaches_it() -> None:
    bounds = (0.001, 0.01, 1.0)
    assert figures.quantile(bounds, (98, 1, 0, 1), 0.5) == "<1.0ms"
    assert figures.quantile(bounds, (98, 1, 0, 1), 0.99) == "<10ms"
    assert figures.quantile(bounds, (98, 0, 0, 2), 0.99) == ">1.0s"
    assert figures.quantile(bounds, (0, 0, 0, 0), 0.99) == "-"
    assert figures.quantile((), (), 0.5) == "-"


# --- rates ------------------------------------------------------------------------------------------------------------


@given(st.none() | st.integers(0, 2**60), st.none() | st.integers(0, 2**60), st.floats(-1, 1e6, allow_nan=False))
def test_a_rate_is_known_or_none_and_never_negative(before: int | None, after: int | None, seconds: float) -> None:
    found = change(before, after, seconds)
    comparable = before is not None and after is not None and before <= after and seconds >= 0.01
    assert (found is not None) == comparable
    assert found is None or found >= 0


def test_rates_of_two_readings() -> None:
    before, after = snapshot(0.0), snapshot(2.0)
    rates = compare(before, after)
    assert rates.total.accepted == (after.totals.accepted - before.totals.accepted) / 2
    first = rates.of(after.workers[0])
    assert first.accepted == (after.workers[0].accepted - before.workers[0].accepted) / 2
    assert first.cpu is not None
    assert 0.2 <= first.cpu <= 0.7
    assert rates.closed["kicked"] == 0


def test_what_cannot_be_compared_has_no_rate() -> None:
    now = snapshot(5.0)
    assert compare(None, now).total.accepted is None
    assert compare(snapshot(0.0, pid=17), now).total.accepted is None, "another supervisor"
    assert compare(snapshot(9.0), now).total.accepted is None, "counters that went back"
    assert compare(now, now).total.accepted is None, "no time between them"
    other = snapshot(0.0, workers=canned.status()["workers"][1:])
    assert compare(other, now).of(now.workers[0]).accepted is None, "a new worker"
    assert compare(other, now).of(now.workers[1]).accepted is not None


def test_what_happened_between_two_readings_is_told() -> None:
    slots = canned.status()["slots"]
    slots[2] |= {"restarts": 1, "last_exit": "signal 9 (killed by --hang-timeout)"}
    assert happened(None, snapshot()) == []
    assert happened(snapshot(), snapshot(1)) == []
    assert happened(snapshot(), snapshot(slots=slots)) == ["worker 2: signal 9 (killed by --hang-timeout)"]
    assert happened(snapshot(pid=1), snapshot()) == ["supervisor 4242 serves, after supervisor 1"]
    failed = {"ok": 4, "failed": 1, "last": {"result": "failed", "reason": "no database"}}
    assert happened(snapshot(), snapshot(reloads=failed)) == ["reload failed: no database"]
    assert happened(snapshot(), snapshot(suspended=True)) == ["suspended: no worker accepts"]
    assert happened(snapshot(), snapshot(state="lame_duck")) == ["the server is lame duck (was serving)"]


# --- what a server says is not trusted --------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=25)
@given(st.dictionaries(st.sampled_from(sorted(canned.status())), JSON, max_size=8))
def test_any_reply_can_be_shown(changes: dict[str, Any]) -> None:
    reply = json.loads(json.dumps(canned.status(2) | changes))
    shown = Model()
    shown.take(Reading(read_status(reply, 0.0, 0.0)), "")
    for view in View:
        shown.show(view)
        lines = screen(shown)
        assert len(lines) == 24
        assert all(text_of(line).isprintable() for line in lines)


def test_no_text_of_a_peer_or_worker_reaches_the_terminal_unescaped() -> None:
    evil = "\x1b[2J[bold]\u202e\n"
    slots = [{"slot": 0, "state": evil, "restarts": 1, "last_exit": evil}]
    shown = model(workers=[], slots=slots, target=evil, deaths={evil: 1}, listeners=[evil])
    row = dataclasses.replace(rows(1)[0], peer=evil, id=evil, tls=evil, phase=evil, listener=evil)
    shown.take(Reading(snapshot(2.0, slots=slots, target=evil), Connections([row], True, [], 0)), "")
    for view in View:
        shown.show(view)
        for line in screen(shown, 160):
            assert text_of(line).isprintable()
    assert "[bold]" in text(screen(shown, 160)), "what looks like markup is text"


def test_letters_of_one_column_stay_and_wider_ones_are_escaped() -> None:
    assert snapshot(target="Br\xfccke:handle").target == "Br\xfccke:handle"
    assert snapshot(target="\u30c7\u30e2:handle").target == "\\u30c7\\u30e2:handle"
    assert snapshot(target="e\u0301:handle").target == "e\\u0301:handle"


def test_a_reply_of_an_older_server_is_shown_with_what_it_has() -> None:
    reply = {
        "ok": True,
        "version": "0.0.9",
        "pid": 7,
        "state": "serving",
        "workers": [{"slot": 0, "pid": 8, "state": "ready", "open": 3, "accepted": 5, "refused": 1}],
    }
    shown = Model()
    shown.take(Reading(read_status(reply, 0.0, 0.0)), "")
    assert "ready 1/1" in text(screen(shown))
    assert shown.snapshot is not None
    assert (shown.snapshot.totals.accepted, shown.snapshot.open) == (5, 3)


# --- lines and tables -------------------------------------------------------------------------------------------------

LINES = st.lists(st.tuples(st.text("ab ", max_size=9), st.sampled_from(Tone)), max_size=5).map(tuple)


@settings(max_examples=50)
@given(LINES, LINES, st.integers(0, 50))
def test_lines_never_exceed_their_width(left: Line, right: Line, width: int) -> None:
    assert width_of(fit(left, width)) == min(width_of(left), width)
    assert width_of(spread(left, right, width)) <= width
    assert all(width_of(line) <= width for line in wrap([left, right], width))


@pytest.mark.parametrize("width", [20, 60, 80, 100, 160, 300])
@pytest.mark.parametrize("view", list(View))
def test_every_page_fits_and_fills_its_screen(view: View, width: int) -> None:
    for height in (10, 24, 45):
        lines = screen(model(view), width, height)
        assert len(lines) == height
        assert max(map(width_of, lines)) <= width


def test_80_columns_hold_all_columns_that_are_promised() -> None:
    for view, promised in (
        (View.WORKERS, "SLOT PID STATE CONN ACC/s RX/s TX/s UNSENT LAG CPU RSS AGE EXITS"),
        (View.CONNECTIONS, "ID PEER LISTEN PHASE AGE IDLE RX TX UNSENT TLS"),
    ):
        layout = lay_out(TABLES[view].columns, 80)
        assert text_of(heading(layout, Order(""))).split() == promised.split()
    wide = text_of(heading(lay_out(TABLES[View.CONNECTIONS].columns, 160), Order(""))).split()
    assert "WORKER" in wide


@pytest.mark.parametrize("width", [80, 160])
def test_columns_are_aligned_and_no_row_is_wider_than_the_heading(width: int) -> None:
    for view, found in ((View.WORKERS, model().rows), (View.CONNECTIONS, list(rows()))):
        layout = lay_out(TABLES[view].columns, width)
        head = heading(layout, Order(""))
        assert {width_of(line_of(layout, row, False)) for row in found} == {width_of(head)}
        assert width_of(head) <= width


@settings(max_examples=50)
@given(st.lists(st.none() | st.integers(-5, 5)), st.booleans())
def test_sorting_puts_unknown_values_last_and_keeps_equal_ones_in_place(values: list[int | None], turned: bool) -> None:
    found = [workers.Row(workers.Slot(i, "", None, 0, ""), None, workers.Flow(value)) for i, value in enumerate(values)]
    done = arrange(found, workers.COLUMNS, Order("ACC/s", turned))
    keys = [row.flow.accepted for row in done]
    known = [key for key in keys if key is not None]
    assert keys[len(known) :] == [None] * (len(keys) - len(known))
    assert known == sorted(known, reverse=not turned)
    assert sorted(row.slot.slot for row in done) == list(range(len(values)))


def test_ids_sort_as_numbers_and_the_same_letter_turns_the_order() -> None:
    shown = model(View.CONNECTIONS)
    one = rows(1)[0]
    named = [dataclasses.replace(one, id=name, worker=slot) for name, slot in (("10-2", 10), ("2-10", 2), ("2-9", 2))]
    shown.connections = Connections(named, True, [], 0)
    shown.turn_order()
    shown.turn_order()
    assert [row.id for row in shown.rows] == ["2-9", "2-10", "10-2"]
    shown.sort_by("N")
    assert [row.id for row in shown.rows] == ["10-2", "2-10", "2-9"]
    assert turn(Order("AGE"), "RX") == Order("RX")
    assert neighbour(connections.COLUMNS, Order("ID"), -1) == Order("TLS")


def test_the_filter_wants_every_word_and_knows_names() -> None:
    found = rows(100)
    by_worker = select(found, "worker=2", connections.texts_of)
    assert by_worker
    assert {row.worker for row in by_worker} == {2}
    both = select(found, "worker=2 PHASE=open", connections.texts_of)
    assert 0 < len(both) < len(by_worker)
    assert select(found, found[7].peer, connections.texts_of) == [found[7]]
    assert select(found, "nothing-like-that", connections.texts_of) == []
    assert select(found, "  ", connections.texts_of) == found


@settings(max_examples=50)
@given(
    st.lists(st.text("abcd", min_size=1, max_size=2), unique=True, max_size=12),
    st.lists(st.text("abcd", min_size=1, max_size=2), unique=True, max_size=12),
    st.integers(1, 6),
    st.lists(st.integers(-15, 15), max_size=4),
)
def test_the_cursor_is_always_visible_and_stays_with_its_row(
    old: list[str], new: list[str], height: int, steps: list[int]
) -> None:
    cursor = follow(Cursor(), old, height)
    for step in steps:
        cursor = follow(move(cursor, old, step), old, height)
    after = follow(cursor, new, height)
    if new:
        assert after.top <= after.index < after.top + height
        assert 0 <= after.top <= max(len(new) - height, 0)
        assert after.key == (new[after.index] if cursor.key else "")
        assert cursor.key not in new or after.key == cursor.key
    else:
        assert after == Cursor()


def test_empty_tables_say_so_in_words() -> None:
    unread = Model(view=View.CONNECTIONS)
    unread.take(Reading(snapshot()), "")
    assert "asking the workers ..." in text(screen(unread))
    assert "no connection is open" in text(screen(model(View.CONNECTIONS, 0)))
    assert "there is no worker" in text(screen(model(workers=[], slots=[])))
    shown = model(View.CONNECTIONS)
    shown.set_filter("zz")
    assert "nothing matches 'zz'" in text(screen(shown))
    shown.set_filter("")
    assert shown.rows


# --- the model and its pages ------------------------------------------------------------------------------------------


def test_the_header_says_how_much_is_used_and_what_is_wrong() -> None:
    head = text(pages.head(model(), 80))
    for words in ("prefork 0.1.0", "chat.server:handle", "pid 4242", "up 3h12m", "gen 4", "ready 4/4", "serving"):
        assert words in head
    assert "connections 1.1K/10K" in head
    assert "queue 3/256" in head
    assert "accepts/s 159" in head
    failed = {"ok": 0, "failed": 1, "last": {"result": "failed"}}
    bad = text(pages.head(model(suspended=True, reloads=failed, workers_target=5), 80))
    for words in ("suspended", "last reload failed", "ready 4/5", "pid 4242"):
        assert words in bad
    assert "lame duck" in text(pages.head(model(state="lame_duck"), 80))


def test_a_server_that_is_gone_is_said_and_keeps_its_last_numbers() -> None:
    shown = model()
    shown.lose("connection refused", "12:00:02")
    assert "server gone, waiting" in text(screen(shown))
    assert "4243" in text(screen(shown))
    shown.lose("connection refused", "12:00:03")
    shown.take(Reading(snapshot(0.0, pid=99)), "12:00:09")
    assert "server gone" not in text(pages.head(shown, 80))
    assert "accepts/s -" in text(pages.head(shown, 80))
    assert list(shown.seen) == [
        "12:00:02  the server is gone: connection refused",
        "12:00:09  the server answers again",
        "12:00:09  supervisor 99 serves, after supervisor 4242",
    ]
    never = Model()
    never.lose("connection refused", "")
    assert "no answer, waiting: connection refused" in text(screen(never))


def test_the_account_adds_up_on_the_page() -> None:
    page = text(screen(model(View.ACCOUNT), 160, 45))
    for words in ("accepted", "idle timeout", "never: handler failed", "TLSv1.3 resumed", "bytes sent"):
        assert words in page
    small = text(screen(model(View.ACCOUNT, totals={}), 80, 45))
    assert "does not say for which reasons" in small


def test_troubles_are_listed_with_the_worst_first() -> None:
    day = 86_400
    shown = model(
        View.TROUBLES,
        deaths={"signal": 2, "hang": 5},
        slots=[
            {"slot": 0, "restarts": 1, "last_exit": "signal 11"},
            {"slot": 1, "restarts": 6, "last_exit": "exit status 1", "retry_in": 12.5, "state": "backoff"},
        ],
        reloads={"ok": 1, "failed": 1, "last": {"result": "failed", "at": canned.CLOCK - 300, "reason": "no database"}},
        certificates=[
            {"file": "/good.pem", "not_after": canned.CLOCK + 61 * day},
            {"file": "/old.pem", "not_after": canned.CLOCK - 5 * day},
        ],
    )
    page = text(screen(shown))
    positions = [page.index(words) for words in ("5 hang", "2 signal", "slot 1", "slot 0", "5m01s ago: no database")]
    assert positions == sorted(positions)
    assert "next try in 12s" in page
    assert page.index("expired 5d00h ago /old.pem") < page.index("60d left /good.pem")


def test_a_slot_without_a_process_and_a_paused_worker_have_their_rows() -> None:
    reply = canned.status(2)
    reply["workers"][0]["paused"] = "max_connections"
    reply["workers"][1] |= {"state": "starting", "missing": "no listener"}
    slots = [*reply["slots"], {"slot": 2, "state": "backoff", "retry_in": 12.3, "restarts": 7, "last_exit": "signal 9"}]
    page = text(screen(model(workers=reply["workers"], slots=slots), 160))
    assert "paused: max_connections" in page
    assert "starting: no listener" in page
    assert "backoff 12s" in page
    assert "signal 9" in page
    assert "backoff " in text(screen(model(workers=reply["workers"], slots=slots), 80))


def test_the_kernel_is_asked_about_the_selected_connection_only() -> None:
    shown = model(View.CONNECTIONS)
    assert shown.selected is not None
    assert "rtt 21ms" in text(pages.detail(shown, 80))
    assert "limited by receiver 1.2s" in text(pages.detail(shown, 80))
    first = shown.selected
    shown.move(3)
    assert shown.selected != first
    assert shown.selected.peer in text(pages.detail(shown, 80))
    shown.show(View.WORKERS)
    assert shown.selected is None
    assert pages.detail(shown, 80) == []


def test_help_and_last_line_leave_out_what_may_not_be_done() -> None:
    shown = model(View.CONNECTIONS)
    assert "kick" in text_of(pages.foot(shown, 80))
    assert "end the selected" in text(help_lines(shown))
    shown.read_only = True
    assert "kick" not in text_of(pages.foot(shown, 80))
    assert "end the selected" not in text(help_lines(shown))
    shown.message = "kicked 1 connection"
    assert text_of(pages.foot(shown, 80)) == "kicked 1 connection"


def test_no_key_means_two_things() -> None:
    keys = [command.key for command in COMMANDS]
    assert len(keys) == len(set(keys))
    for table in TABLES.values():
        letters = [column.letter for column in table.columns if column.letter]
        assert len(letters) == len(set(letters))
        assert all(letter.isupper() for letter in letters)


def test_one_frame_is_plain_text_with_all_rows() -> None:
    frame = pages.frame(model(View.CONNECTIONS, 60), 80)
    assert len(frame.splitlines()) == 65
    assert "\x1b" not in frame
    assert "done" in pages.frame(model(View.ACCOUNT), 80)
    assert plain("") != EMPTY
    assert text_of(EMPTY) == ""


@pytest.mark.slow
def test_a_large_fleet_is_shown_in_a_few_milliseconds() -> None:
    """The bound is generous, because a busy machine runs this too; 200 workers and 1,000 connections take 20 ms."""
    shown = Model(view=View.CONNECTIONS)
    status: Mapping[str, Any] = canned.status(200)
    found = canned.connections(1000)
    began = time.process_time()
    for second in range(5):
        shown.take(Reading(read_status(status, second, 0.0), found), "")
        screen(shown, 160, 45)
    assert (time.process_time() - began) / 5 < 0.2
