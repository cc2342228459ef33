"""The keys of the live view: one table for the view itself and for its help.

The letters that sort stand with their columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .lines import EMPTY, Line, Tone
from .model import TABLES, Model


@dataclass(frozen=True, slots=True)
class Command:
    """A key as Textual calls it, the action, what the help says, and the key as the help names it."""

    key: str
    action: str
    help: str = ""
    name: str = ""
    #: Whether it changes something in the server, which a view that may only read leaves out.
    changes: bool = False


COMMANDS: Sequence[Command] = (
    Command("1", "show('1')", "workers, connections, account, troubles", "1 2 3 4"),
    Command("2", "show('2')"),
    Command("3", "show('3')"),
    Command("4", "show('4')"),
    Command("up", "move(-1)", "select a row, also by PgUp, PgDn, Home, End", "up down"),
    Command("down", "move(1)"),
    Command("pageup", "page(-1)"),
    Command("pagedown", "page(1)"),
    Command("home", "move(-1000000)"),
    Command("end", "move(1000000)"),
    Command("enter", "enter", "show the connections of the selected worker", "Enter"),
    Command("slash", "filter", "show the rows that match every word; worker=2 matches exactly", "/"),
    Command("escape", "all", "show all rows", "Esc"),
    Command("less_than_sign", "neighbour(-1)", "sort by the column before or after", "< >"),
    Command("greater_than_sign", "neighbour(1)"),
    Command("r", "turn", "turn the order", "r"),
    Command("space", "pause", "pause, go on", "space"),
    Command("k", "kick", "end the selected connection, after a question", "k", changes=True),
    Command("question_mark", "help", "this help", "?"),
    Command("q", "quit", "quit", "q"),
    Command("ctrl+c", "quit"),
    Command("ctrl+z", "suspend_process"),
)


def help_lines(model: Model) -> list[Line]:
    """Return the help for the page that is shown."""
    lines: list[Line] = [
        ((f"{command.name:>9}  ", Tone.STRONG), (command.help, Tone.PLAIN))
        for command in COMMANDS
        if command.help and not (command.changes and model.read_only)
    ]
    table = TABLES.get(model.view)
    columns = table.columns if table else ()
    sorting = [(column.letter, column.title) for column in columns if column.letter]
    if sorting:
        lines += [EMPTY, (("Capital letters sort; the same one again turns the order:", Tone.QUIET),)]
        for first in range(0, len(sorting), 5):
            part = sorting[first : first + 5]
            lines.append(tuple(span for letter, title in part for span in _letter(letter, title)))
    return [*lines, EMPTY, (("any key goes back", Tone.QUIET),)]


def _letter(letter: str, title: str) -> Line:
    return ((f"{letter:>3} ", Tone.STRONG), (f"{title:<8}", Tone.PLAIN))
