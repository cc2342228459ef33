"""The live view in a terminal, by Textual: keys, the clock of readings, and the parts of the screen.

What is shown is decided in `pages.py` and `model.py`. Importing this file needs Textual (`prefork[top]`).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.events import Key, Resize
from textual.widgets import Input

from ...errors import ExitCode, PreforkError, reason_of
from ...text import escape_controls
from ..joining import Row
from . import connections, pages
from .calls import SerialCalls
from .dialogs import Help, Question
from .keys import COMMANDS
from .lines import Tone
from .model import Model, View
from .pane import Pane
from .source import Source
from .terminal import KeptTerminal, end_by_signals

#: How many times longer than a reading took nothing is read, so that a large server is not kept busy by the view.
_REST = 4
#: Objects that are made and not freed before a collection looks for cycles.
_GARBAGE = 50_000


def run(source: Source, interval: float, read_only: bool, view: View) -> int:
    """Show the live view until it ends; return the exit code of the command.

    The terminal's settings are put back here too, because Textual does not come to it where it fails itself.
    """
    for name in ("COLUMNS", "LINES"):
        # Textual would take it for the size, and never follow the terminal.
        os.environ.pop(name, None)
    terminal = KeptTerminal()
    app = Top(source, interval, read_only, view, terminal)
    # A reading makes thousands of objects and no cycles: collections took 20 % of its time, and looked at all of
    # Textual again.
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    end_by_signals(terminal, app.end)
    try:
        # Without the mouse, the terminal's own selection copies an address.
        code = app.run(mouse=False)
    finally:
        terminal.restore()
    return ExitCode.BUG if code is None else code


class Top(App[int]):
    """Reads `source` every `interval` seconds, one request at a time, and shows it until it is told to quit.

    Returns 0 after `q`, and 128 and the number of a signal that ended it.
    """

    CSS = """
    Screen { layout: vertical; overflow: hidden; }
    #head { height: 4; }
    #body { height: 1fr; }
    #detail { height: 0; }
    #foot { height: 1; }
    #asking { display: none; height: 1; }
    #prompt { width: 8; }
    #filter { width: 1fr; }
    """
    ENABLE_COMMAND_PALETTE = False
    # Otherwise the line of the filter would take the keys from the start.
    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(command.key, command.action, command.help, show=False) for command in COMMANDS
    ]

    def __init__(
        self,
        source: Source,
        interval: float = 1.0,
        read_only: bool = False,
        view: View = View.WORKERS,
        terminal: KeptTerminal | None = None,
    ) -> None:
        super().__init__()
        self.theme = "ansi-dark"
        self.animation_level = "none"
        self.model = Model(interval=interval, read_only=read_only, view=view)
        self._source = source
        self._terminal = terminal
        self._calls = SerialCalls()
        self._awake = asyncio.Event()
        # Kept here, because at the end of the view a query would not find them any more.
        self._head, self._body, self._detail, self._foot = map(Pane, ("head", "body", "detail", "foot"))
        self._asking = Horizontal(id="asking")
        self._filter = Input(placeholder="words, or worker=2, phase=open", compact=True, id="filter")
        self._loop_of_view: asyncio.AbstractEventLoop | None = None

    def compose(self) -> ComposeResult:
        yield from (self._head, self._body, self._detail)
        with self._asking:
            yield Pane("prompt", [(("filter: ", Tone.ACCENT),)])
            yield self._filter
        yield self._foot

    def on_mount(self) -> None:
        self._loop_of_view = asyncio.get_running_loop()
        self.run_worker(self._watch(), exit_on_error=True)

    def on_unmount(self) -> None:
        self._calls.close()

    def end(self, code: int) -> None:
        """End the view with this exit code; a handler of a signal may call it."""
        if self._loop_of_view is None:
            raise SystemExit(code)
        self._loop_of_view.call_soon_threadsafe(self.exit, code)

    # --- readings -----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Read and show, once for each interval and whenever a key wants more than was read."""
        while True:
            began = time.monotonic()
            self._awake.clear()
            if self._terminal is not None and self._terminal.is_gone():
                signal.raise_signal(signal.SIGHUP)
            if not self.model.paused:
                await self._read()
                self.refresh_panes()
            took = time.monotonic() - began
            try:
                async with asyncio.timeout(max(self.model.interval - took, took * _REST)):
                    await self._awake.wait()
            except TimeoutError:
                pass

    async def _read(self) -> None:
        shows_connections = self.model.view is View.CONNECTIONS
        clock = time.strftime("%H:%M:%S")
        try:
            reading = await self._calls.call(self._source.read, shows_connections)
        except (PreforkError, OSError) as exc:
            self.model.lose(_words(exc), clock)
        else:
            self.model.take(reading, clock)

    # --- the screen ---------------------------------------------------------------------------------------------------

    def on_resize(self, event: Resize) -> None:
        self.call_after_refresh(self.refresh_panes)

    def refresh_panes(self) -> None:
        """Show the model. What is the same as before costs the terminal nothing."""
        width = self.size.width
        lines = pages.detail(self.model, width)
        height = self._detail.styles.height
        if height is None or height.value != len(lines):
            self._detail.styles.height = len(lines)
            self.call_after_refresh(self.refresh_panes)
        self._detail.show(lines)
        self._head.show(pages.head(self.model, width))
        self._body.show(pages.body(self.model, width, self._body.size.height))
        self._foot.show([pages.foot(self.model, width)])

    # --- keys ---------------------------------------------------------------------------------------------------------

    def on_key(self, event: Key) -> None:
        """Sort by the column of a capital letter, and forget the message of the last command."""
        if len(self.screen_stack) > 1 or isinstance(self.focused, Input):
            return
        self.model.message = ""
        if event.character and event.character.isascii() and event.character.isupper():
            self.model.sort_by(event.character)
        self.refresh_panes()

    def action_show(self, key: str) -> None:
        if self.model.view is not View(key):
            self.model.show(View(key))
            self._awake.set()
            self.refresh_panes()

    def action_move(self, step: int) -> None:
        self.model.move(step)
        self.refresh_panes()

    def action_page(self, step: int) -> None:
        self.action_move(step * max(self._body.size.height - 2, 1))

    def action_neighbour(self, step: int) -> None:
        self.model.sort_by_neighbour(step)
        self.refresh_panes()

    def action_turn(self) -> None:
        self.model.turn_order()
        self.refresh_panes()

    def action_pause(self) -> None:
        self.model.paused = not self.model.paused
        self._awake.set()
        self.refresh_panes()

    def action_filter(self) -> None:
        if not self.model.is_table:
            return
        self._filter.value = self.model.filter
        self._ask(True)
        self._filter.focus()

    def action_all(self) -> None:
        """Leave the filter's line, and show every row."""
        self._leave_filter("")

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.has_focus:
            self.model.set_filter(event.value)
            self.refresh_panes()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._leave_filter(event.value)

    def _leave_filter(self, words: str) -> None:
        self._ask(False)
        self.set_focus(None)
        if self.model.is_table:
            self.model.set_filter(words)
        self.refresh_panes()

    def _ask(self, asking: bool) -> None:
        """Show the line of the filter in the place of the last line, or that line again."""
        self._asking.display = asking
        self._foot.display = not asking

    def action_enter(self) -> None:
        """Show the connections of the selected worker."""
        slot = self.model.selected_slot
        if slot is not None:
            self.model.show(View.CONNECTIONS)
            self.model.set_filter(f"worker={slot}")
            self._awake.set()
            self.refresh_panes()

    def action_kick(self) -> None:
        """Ask whether the selected connection shall end. The answer is for that one, whatever is selected by then."""
        selected = self.model.selected
        if selected is None or self.model.read_only:
            return

        def answer(yes: bool | None) -> None:
            if yes:
                self.run_worker(self._kick(selected))

        self.push_screen(Question(f"Kick {connections.describe(selected)}?"), answer)

    async def _kick(self, connection: Row) -> None:
        try:
            self.model.message = escape_controls(await self._calls.call(self._source.kick, connection))
        except (PreforkError, OSError) as exc:
            self.model.message = f"not kicked: {_words(exc)}"
        self._awake.set()
        self.refresh_panes()

    def action_help(self) -> None:
        self.push_screen(Help(self.model))

    async def action_quit(self) -> None:
        self.exit(0)


def _words(exc: Exception) -> str:
    return escape_controls(reason_of(exc) if isinstance(exc, OSError) else exc)
