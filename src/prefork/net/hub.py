"""What all streams of one server share, handed to each as one object.

A plain holder: the server makes it and closes it. No decisions live here.
"""

from __future__ import annotations

import asyncio
import itertools

from ..config import Limits
from ..events import Emit
from .deadlines import Deadlines
from .poller import Poller, make_poller


class Hub:
    """One server's loop, poller, deadlines, limits and drain signal."""

    __slots__ = ("deadlines", "drain_asked", "emit", "ids", "limits", "loop", "poller")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limits: Limits, emit: Emit, poller: Poller | None = None
    ) -> None:
        self.loop = loop
        self.limits = limits
        self.emit = emit
        self.poller = make_poller(loop) if poller is None else poller
        self.deadlines = Deadlines(loop)
        self.drain_asked = asyncio.Event()
        """Set once, when the worker wants to stop."""
        self.ids = itertools.count(1)

    def close(self) -> None:
        """Close the poller and forget the deadlines. All streams must be closed."""
        self.deadlines.close()
        self.poller.close()
