"""The state of the live view: what was read last, which page is shown, and what the keys have chosen.

No I/O and no Textual. `pages.py` turns it into lines, and `app.py` owns it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..connections import Connections
from ..joining import Row
from . import connections, workers
from .facts import Snapshot
from .rates import Rates, compare, happened
from .source import Reading
from .table import Column, Cursor, Order, arrange, follow, move, neighbour, select, turn

#: Lines of what happened that are kept.
MAX_SEEN = 100
#: More rows than any terminal has: the window of a table is found when it is shown.
_ANY_HEIGHT = 1_000_000


class View(enum.Enum):
    """The pages, by the key that shows each."""

    WORKERS = "1"
    CONNECTIONS = "2"
    ACCOUNT = "3"
    TROUBLES = "4"

    @property
    def title(self) -> str:
        return self.name.capitalize()


@dataclass(frozen=True, slots=True)
class Table:
    """What a page that is a table has: columns, what tells its rows apart, and what the filter looks at."""

    columns: Sequence[Column[Any]]
    key: Callable[[Any], str]
    texts: Callable[[Any], Sequence[tuple[str, str]]]


TABLES: Mapping[View, Table] = {
    View.WORKERS: Table(workers.COLUMNS, workers.key_of, workers.texts_of),
    View.CONNECTIONS: Table(connections.COLUMNS, connections.key_of, connections.texts_of),
}


@dataclass(slots=True)
class Model:
    """What is shown. Rows are sorted and filtered once for each reading or key, not for each redraw."""

    interval: float = 1.0
    read_only: bool = False
    view: View = View.WORKERS
    paused: bool = False
    #: Why the server does not answer; empty while it does.
    gone: str = ""
    #: What the last command did, until the next key.
    message: str = ""
    snapshot: Snapshot | None = None
    rates: Rates = field(default_factory=Rates)
    #: None until they were read once.
    connections: Connections | None = None
    seen: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_SEEN))
    filters: dict[View, str] = field(default_factory=dict)
    orders: dict[View, Order] = field(
        default_factory=lambda: {View.WORKERS: Order("SLOT"), View.CONNECTIONS: Order("ID")}
    )
    cursors: dict[View, Cursor] = field(default_factory=dict)
    #: The rows of the page in their order, and their keys.
    rows: list[Any] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    # --- what was read ------------------------------------------------------------------------------------------------

    def take(self, reading: Reading, clock: str) -> None:
        """Show a reading; `clock` is the time of day that events are noted with."""
        if self.gone:
            self.seen.append(f"{clock}  the server answers again")
            self.gone = ""
        self.seen += [f"{clock}  {line}" for line in happened(self.snapshot, reading.snapshot)]
        self.rates = compare(self.snapshot, reading.snapshot)
        self.snapshot = reading.snapshot
        if reading.connections is not None:
            self.connections = reading.connections
        self._arrange()

    def lose(self, reason: str, clock: str) -> None:
        """Note that the server does not answer. What was read last stays on the screen."""
        if not self.gone:
            self.seen.append(f"{clock}  the server is gone: {reason}")
        self.gone = reason
        self.rates = Rates()
        self._arrange()

    # --- what keys do -------------------------------------------------------------------------------------------------

    @property
    def is_table(self) -> bool:
        return self.view in TABLES

    @property
    def filter(self) -> str:
        return self.filters.get(self.view, "")

    def show(self, view: View) -> None:
        self.view = view
        self._arrange()

    def set_filter(self, words: str) -> None:
        self.filters[self.view] = words
        self._arrange()

    def sort_by(self, letter: str) -> None:
        """Sort by the column of a letter; the same letter again turns the order."""
        for column in self._columns():
            if column.letter == letter:
                self._set_order(turn(self.orders[self.view], column.title))

    def sort_by_neighbour(self, step: int) -> None:
        if self.is_table:
            self._set_order(neighbour(self._columns(), self.orders[self.view], step))

    def turn_order(self) -> None:
        if self.is_table:
            order = self.orders[self.view]
            self._set_order(turn(order, order.title))

    def _set_order(self, order: Order) -> None:
        self.orders[self.view] = order
        self.cursors[self.view] = Cursor()
        self._arrange()

    def move(self, step: int) -> None:
        self.cursors[self.view] = move(self.cursor, self.keys, step)

    # --- rows and the cursor ------------------------------------------------------------------------------------------

    @property
    def cursor(self) -> Cursor:
        return self.cursors.get(self.view, Cursor())

    @property
    def selected(self) -> Row | None:
        """Return the connection under the cursor, if connections are shown."""
        if self.view is not View.CONNECTIONS or not self.rows:
            return None
        connection: Row = self.rows[self.cursor.index]
        return connection

    @property
    def selected_slot(self) -> int | None:
        """Return the slot under the cursor, if workers are shown."""
        if self.view is not View.WORKERS or not self.rows:
            return None
        row: workers.Row = self.rows[self.cursor.index]
        return row.slot.slot

    def scroll(self, height: int) -> None:
        """Keep the cursor inside a window of `height` rows."""
        self.cursors[self.view] = follow(self.cursor, self.keys, height)

    def _columns(self) -> Sequence[Column[Any]]:
        table = TABLES.get(self.view)
        return () if table is None else table.columns

    def _arrange(self) -> None:
        table = TABLES.get(self.view)
        if table is None or self.snapshot is None:
            self.rows, self.keys = [], []
            return
        rows: Sequence[Any] = self.connections.rows if self.connections else []
        if self.view is View.WORKERS:
            rows = workers.rows_of(self.snapshot, self.rates)
        found = select(rows, self.filter, table.texts)
        self.rows = arrange(found, table.columns, self.orders[self.view])
        self.keys = list(map(table.key, self.rows))
        self.cursors[self.view] = follow(self.cursor, self.keys, _ANY_HEIGHT)
