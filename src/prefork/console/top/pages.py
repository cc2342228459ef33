"""The lines of the screen, from the state of the view; and one frame of plain text for scripts.

Pure. Each part has its number of lines, so that nothing moves while values change.
"""

from __future__ import annotations

from . import connections, figures, table
from .account import account
from .header import header
from .lines import EMPTY, Line, Tone, block, fit, join, quiet, spread, text_of, width_of
from .model import TABLES, Model, View
from .troubles import troubles

#: Lines of the header, and of what the kernel knows of the selected connection.
HEADER_LINES, DETAIL_LINES = 3, 3


def head(model: Model, width: int) -> list[Line]:
    """Return the header and the line of tabs under it."""
    if model.snapshot is None:
        text = f"no answer, waiting: {model.gone}" if model.gone else "asking the server ..."
        lines = block([fit(((text, Tone.WARNING),), width)], HEADER_LINES)
    else:
        lines = header(model.snapshot, model.rates, _note(model), width)
    return [*lines, _tabs(model, width)]


def _note(model: Model) -> Line:
    if model.gone:
        return (("server gone, waiting", Tone.BAD),)
    return (("PAUSED, space goes on", Tone.WARNING),) if model.paused else ()


def _tabs(model: Model, width: int) -> Line:
    tabs: list[Line] = [
        ((f" {view.value} {view.title} ", Tone.CURSOR if view is model.view else Tone.QUIET),) for view in View
    ]
    left, right = join(tabs, " "), quiet(_position(model))
    return spread(left, right, width) if width_of(left) + width_of(right) < width else fit(left, width)


def _position(model: Model) -> str:
    """Return how many rows there are, and which of them is selected."""
    if not model.is_table or not model.rows:
        return ""
    if silence := _silence(model):
        return figures.words(silence, 26)
    return f"{model.cursor.index + 1} of {len(model.rows)}"


def _silence(model: Model) -> str:
    """Return which workers did not answer; nothing if all did."""
    if model.view is not View.CONNECTIONS or model.connections is None or not model.connections.stale:
        return ""
    return f"no answer of worker {', '.join(map(str, model.connections.stale))}"


def body(model: Model, width: int, height: int) -> list[Line]:
    """Return the page in exactly `height` lines. Moves the window of a table to its cursor."""
    if model.snapshot is None:
        return block([], height)
    match model.view:
        case View.ACCOUNT:
            lines = account(model.snapshot, model.rates, width, height)
        case View.TROUBLES:
            lines = troubles(model.snapshot, model.seen, width, height)
        case _:
            model.scroll(height - 1)
            layout = table.lay_out(TABLES[model.view].columns, width)
            lines = table.render(layout, model.rows, model.orders[model.view], model.cursor, height, _empty(model))
    return [fit(line, width) for line in lines]


def _empty(model: Model) -> str:
    if model.filter:
        return f"nothing matches {model.filter!a} (Esc shows all)"
    if model.view is View.WORKERS:
        return "there is no worker"
    if model.connections is None:
        return "paused before they were read" if model.paused else "asking the workers ..."
    return "no connection is open"


def detail(model: Model, width: int) -> list[Line]:
    """Return what the kernel knows of the selected connection; no line on other pages."""
    if model.view is not View.CONNECTIONS:
        return []
    return block(connections.kernel_lines(model.selected, width), DETAIL_LINES)


def foot(model: Model, width: int) -> Line:
    """Return the last line: what the last command did, or the most important keys."""
    if model.message or model.gone:
        return fit(((model.message, Tone.ACCENT) if model.message else (model.gone, Tone.BAD),), width)
    keys = [("1-4", "page"), ("/", "filter"), ("< >", "sort"), ("space", "pause")]
    if model.view is View.CONNECTIONS and not model.read_only:
        keys.append(("k", "kick"))
    shown = join(
        [((key, Tone.STRONG), (f" {name}", Tone.QUIET)) for key, name in (*keys, ("?", "help"), ("q", "quit"))]
    )
    right: Line = ((f"filter: {figures.clip(model.filter, 24)}", Tone.ACCENT),) if model.filter else ()
    return spread(shown, right, width)


def frame(model: Model, width: int) -> str:
    """Return one frame as plain text: the header and all rows of the page."""
    if model.snapshot is None:
        return f"no answer: {model.gone}"
    lines = [*header(model.snapshot, model.rates, (), width), EMPTY]
    match model.view:
        case View.ACCOUNT:
            lines += account(model.snapshot, model.rates, width, 200)
        case View.TROUBLES:
            lines += troubles(model.snapshot, (), width, 200)
        case _:
            layout = table.lay_out(TABLES[model.view].columns, width)
            order = model.orders[model.view]
            lines += table.render(layout, model.rows, order, None, len(model.rows) + 3, _empty(model))
            lines.append(quiet(_silence(model)))
    return "\n".join(text_of(line) for line in lines).rstrip()
