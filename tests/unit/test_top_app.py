"""The live view by its keys, in Textual's own test terminal, with canned readings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from helpers import canned
from textual.pilot import Pilot

from prefork.console.joining import Row
from prefork.console.top.app import Top
from prefork.console.top.facts import read_status
from prefork.console.top.lines import text_of
from prefork.console.top.model import View
from prefork.console.top.pane import Pane
from prefork.console.top.source import Reading
from prefork.errors import NotRunningError


class Canned:
    """A server whose counters grow by one second for each reading; `gone` makes it not answer."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes
        self.readings = 0
        self.running = 0
        self.gone = False
        self.kicked: list[str] = []

    def read(self, connections: bool) -> Reading:
        assert self.running == 0, "two requests at a time"
        self.running += 1
        try:
            if self.gone:
                raise NotRunningError("connection refused")
            self.readings += 1
            second = float(self.readings)
            found = canned.connections(40, second) if connections else None
            reply = canned.status(seconds=second) | self.changes
            return Reading(read_status(reply, second, canned.CLOCK + second), found)
        finally:
            self.running -= 1

    def kick(self, connection: Row) -> str:
        self.kicked.append(connection.id or "")
        return f"kicked 1 connection: {connection.id}"


@contextlib.asynccontextmanager
async def shown(source: Canned, **options: Any) -> AsyncIterator[tuple[Top, Pilot[int]]]:
    app = Top(source, 0.02, **options)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: source.readings > 1)
        yield app, pilot


async def until(pilot: Pilot[int], done: Any, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not done():
            await pilot.pause(0.01)


def page(app: Top) -> str:
    """Return the text of the screen below any dialog."""
    panes = app.screen_stack[0].query(Pane)
    return "\n".join(text_of(line) for pane in panes for line in pane.lines)


def dialog(app: Top) -> str:
    return "\n".join(text_of(line) for line in app.screen.query_one("#dialog", Pane).lines)


@pytest.mark.slow
def test_keys_show_pages_filter_sort_and_end_a_connection() -> None:
    asyncio.run(_work_through_the_keys())


async def _work_through_the_keys() -> None:
    source = Canned()
    async with shown(source) as (app, pilot):
        assert "ready 4/4" in page(app)
        assert "EXITS" in page(app)
        await pilot.press("2")
        await until(pilot, lambda: "rtt 21ms" in page(app))
        await pilot.press("T", "down", "down")
        chosen = app.model.selected
        assert chosen is not None
        assert [row.tx for row in app.model.rows] == sorted((row.tx for row in app.model.rows), reverse=True)

        await pilot.press("k")
        assert chosen.peer in dialog(app)
        await pilot.press("enter")
        assert source.kicked == []
        await pilot.press("k", "y")
        await until(pilot, lambda: "kicked 1 connection" in page(app))
        assert source.kicked == [chosen.id]

        await pilot.press("slash", *"worker=2", "enter")
        assert {row.worker for row in app.model.rows} == {2}
        assert "filter: worker=2" in page(app)
        await pilot.press("escape")
        assert len(app.model.rows) == 40

        await pilot.press("question_mark")
        assert "end the selected connection" in dialog(app)
        await pilot.press("x", "3")
        assert "idle timeout" in page(app)
        await pilot.press("4")
        assert "no worker has died" in page(app)
        source.gone = True
        await until(pilot, lambda: "server gone, waiting" in page(app))
        source.gone = False
        await until(pilot, lambda: "the server answers again" in page(app))
        await pilot.press("q")
    assert app.return_value == 0


@pytest.mark.slow
def test_a_view_that_may_only_read_kicks_nothing() -> None:
    asyncio.run(_press_what_is_left_out())


async def _press_what_is_left_out() -> None:
    source = Canned()
    async with shown(source, read_only=True, view=View.CONNECTIONS) as (app, pilot):
        await until(pilot, lambda: app.model.selected is not None)
        await pilot.press("k")
        assert len(app.screen_stack) == 1
        await pilot.press("question_mark")
        assert "end the selected" not in dialog(app)


@pytest.mark.slow
def test_pause_stops_the_readings_and_goes_on() -> None:
    asyncio.run(_pause())


async def _pause() -> None:
    source = Canned()
    async with shown(source) as (app, pilot):
        await pilot.press("space")
        assert "PAUSED" in page(app)
        await pilot.pause(0.1)
        before = source.readings
        await pilot.pause(0.3)
        assert source.readings == before
        await pilot.press("space")
        await until(pilot, lambda: source.readings > before)


@pytest.mark.slow
def test_the_connections_of_a_worker_are_one_key_away_and_the_question_keeps_its_connection() -> None:
    asyncio.run(_enter())


async def _enter() -> None:
    source = Canned()
    async with shown(source) as (app, pilot):
        await pilot.press("down", "down", "enter")
        await until(pilot, lambda: app.model.rows)
        assert {row.worker for row in app.model.rows} == {2}
        chosen = app.model.selected
        assert chosen is not None
        await pilot.press("k")
        app.model.move(1)
        await pilot.press("y")
        await until(pilot, lambda: source.kicked)
        assert source.kicked == [chosen.id]


@pytest.mark.slow
def test_it_follows_the_size_of_the_terminal() -> None:
    asyncio.run(_resize())


async def _resize() -> None:
    async with shown(Canned()) as (app, pilot):
        assert "LAST EXIT" not in page(app)
        await pilot.resize_terminal(160, 45)
        await until(pilot, lambda: "LAST EXIT" in page(app))
        await pilot.resize_terminal(40, 10)
        await until(pilot, lambda: "UNSENT" not in page(app))
