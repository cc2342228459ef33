"""`prefork top`: what the command does before the live view runs, and one frame of it as plain text.

The view itself is in `console/top`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import shutil
import sys
import time
from typing import TYPE_CHECKING

import click

from ..checks import check_choice, check_seconds, reject
from ..errors import ConfigError
from . import values
from .servers import find_socket

if TYPE_CHECKING:
    from ..console.top.source import Source

VIEWS = ("workers", "connections", "account", "troubles")
#: Below this many seconds between two readings the view would be a load of its own.
MIN_INTERVAL = 0.2
#: The width of a frame that no terminal shows, in characters.
_WIDE = 160
PARAMETERS = (
    click.Option(
        ["--interval"], metavar="SECONDS", default="1", help="Time between two readings, 0.2 or more. Default: 1."
    ),
    click.Option(["--read-only"], is_flag=True, help="Leave out the keys that change something in the server."),
    click.Option(["--once"], is_flag=True, help="Print one frame as plain text, after two readings, and exit."),
    click.Option(["--view"], metavar="VIEW", default="workers", help=f"Begin with {', '.join(VIEWS)}."),
)


def show(control: str, as_json: bool, interval: str, read_only: bool, once: bool, view: str) -> tuple[str, int]:
    """Show a running server until it is quit; return what is printed after that, and the exit code.

    Raises ConfigError if there is no server, no terminal, or no Textual.
    """
    if as_json:
        raise ConfigError("--json: top is for people; prefork status --json and connections --json print its values")
    seconds = values.parse_seconds("--interval", interval)
    check_seconds("--interval", seconds, zero=False)
    if seconds < MIN_INTERVAL:
        reject("--interval", seconds, f"must be {MIN_INTERVAL:g} seconds or more")
    check_choice("--view", view, VIEWS)
    from ..console.top.source import ServerSource

    if not once:
        _require_terminal()
    with contextlib.closing(ServerSource(functools.partial(find_socket, control))) as source:
        return (_frame(source, seconds, view), 0) if once else ("", _run(source, seconds, read_only, view))


def _require_terminal() -> None:
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise ConfigError("top needs a terminal; prefork top --once prints one frame as plain text")
    if importlib.util.find_spec("textual") is None:
        raise ConfigError(
            "top: textual is not installed (pip install 'prefork[top]'); prefork top --once works without it"
        )


def _run(source: Source, interval: float, read_only: bool, view: str) -> int:
    # The first reading fails here, in one line, if there is no server.
    source.read(False)
    from ..console.top.app import run
    from ..console.top.model import View

    return run(source, interval, read_only, View[view.upper()])


def _frame(source: Source, interval: float, view: str) -> str:
    """Return one frame. Rates need two readings, so that this takes as long as the interval."""
    from ..console.top import pages
    from ..console.top.figures import ASCII_CELLS
    from ..console.top.model import Model, View

    model = Model(interval=interval, view=View[view.upper()])
    model.take(source.read(False), "")
    time.sleep(interval)
    model.take(source.read(model.view is View.CONNECTIONS), "")
    width = shutil.get_terminal_size((_WIDE, 24)).columns if sys.stdout is not None and sys.stdout.isatty() else _WIDE
    text = pages.frame(model, width)
    return text if _prints_blocks() else text.translate(ASCII_CELLS)


def _prints_blocks() -> bool:
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return encoding.lower().replace("-", "") == "utf8"
