"""Draw docs/top-*.svg, the pictures of `prefork top`, from made-up readings of a server.

    .venv/bin/python scripts/top_pictures.py

Run it after the live view has changed. It needs Textual, which `make test` installs.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The readings are those that the tests show.
sys.path.insert(0, str(ROOT / "tests"))

from helpers import canned  # noqa: E402  # behind the line that makes it importable

from prefork.console.joining import Row  # noqa: E402  # the same
from prefork.console.top.app import Top  # noqa: E402  # the same
from prefork.console.top.facts import read_status  # noqa: E402  # the same
from prefork.console.top.model import View  # noqa: E402  # the same
from prefork.console.top.source import Reading  # noqa: E402  # the same

SIZE = (80, 24)
#: What keys are pressed before each picture.
PICTURES = {
    "workers": (View.WORKERS, ["down", "down"]),
    "connections": (View.CONNECTIONS, ["T", "down", "down", "down"]),
    "account": (View.ACCOUNT, []),
}


class MadeUp:
    """A server that answers with one second more at each reading."""

    def __init__(self) -> None:
        self._second = 0.0

    def read(self, connections: bool) -> Reading:
        self._second += 1
        reply = canned.status(8, self._second)
        found = canned.connections(400, self._second) if connections else None
        return Reading(read_status(reply, self._second, canned.CLOCK + self._second), found)

    def kick(self, connection: Row) -> str:
        return "nothing was kicked"


async def draw(view: View, keys: list[str]) -> str:
    """Return the picture of a page as SVG, without the fonts that it would load from elsewhere."""
    app = Top(MadeUp(), 0.05, view=view)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause(0.5)
        await pilot.press(*keys)
        await pilot.pause(0.5)
        svg = app.export_screenshot(title="prefork top")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.S)
    # Otherwise each picture would be a different file every time.
    return re.sub(r"terminal-\d+", "terminal", svg)


def main() -> None:
    for name, (view, keys) in PICTURES.items():
        (ROOT / "docs" / f"top-{name}.svg").write_text(asyncio.run(draw(view, keys)))


if __name__ == "__main__":
    main()
