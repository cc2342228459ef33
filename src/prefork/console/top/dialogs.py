"""What is shown over the view: a question that is answered by one key, and the help.

Texts are lines of a pane, never markup.
"""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.events import Key
from textual.screen import ModalScreen

from .keys import help_lines
from .lines import EMPTY, Line, Tone, plain, width_of
from .model import Model
from .pane import Pane

_CSS = """
    $NAME { align: center middle; }
    $NAME > Vertical { border: round ansi_cyan; padding: 0 1; max-width: 100%; max-height: 100%; }
"""


class _Dialog(ModalScreen[bool]):
    """Lines in a box in the middle of the screen."""

    def __init__(self, lines: list[Line]) -> None:
        super().__init__()
        self._lines = lines

    def compose(self) -> ComposeResult:
        box = Vertical(Pane("dialog"))
        # The border and the space beside the text take four columns and two lines.
        box.styles.width = max(map(width_of, self._lines)) + 4
        box.styles.height = len(self._lines) + 2
        yield box

    def on_mount(self) -> None:
        self.query_one(Pane).show(self._lines)


class Question(_Dialog):
    """A question. `y` is yes; `n`, Esc, `q` and Enter are no, because Enter is pressed without reading."""

    CSS = _CSS.replace("$NAME", "Question")

    def __init__(self, question: str) -> None:
        answers: Line = (("y", Tone.STRONG), (" yes   ", Tone.PLAIN), ("n", Tone.STRONG), (" no", Tone.PLAIN))
        super().__init__([plain(question), EMPTY, answers])

    def on_key(self, event: Key) -> None:
        event.stop()
        event.prevent_default()
        if event.key in ("y", "n", "escape", "q", "enter", "ctrl+c"):
            self.dismiss(event.key == "y")


class Help(_Dialog):
    """The keys of the view; any key closes it."""

    CSS = _CSS.replace("$NAME", "Help")

    def __init__(self, model: Model) -> None:
        super().__init__(help_lines(model))

    def on_key(self, event: Key) -> None:
        event.stop()
        event.prevent_default()
        self.dismiss(False)
