"""Clients of the control socket that wait for the end of something, and are told meanwhile how far it is.

When it has ended, and how far it is, is asked of what carries it out: see `control_commands.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.progress import Progress
from .control_server import ControlConnection, ControlSocket

#: Seconds between two reports of progress, and seconds after which one is repeated: a sign that the supervisor lives.
REPORT_INTERVAL = 0.2
REPEAT_INTERVAL = 1.0


@dataclass(slots=True)
class _Waiter:
    connection: ControlConnection
    wants_progress: bool
    told: Progress | None = None
    told_at: float = 0.0


class WaitingClients:
    """Owns the clients that wait for one thing. `outcome` returns the reply for all of them, None before the end."""

    def __init__(
        self,
        control: ControlSocket,
        outcome: Callable[[], dict[str, Any] | None],
        progress: Callable[[], Progress],
    ) -> None:
        self._control = control
        self._outcome = outcome
        self._progress = progress
        self._waiters: list[_Waiter] = []

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, connection: ControlConnection, wants_progress: bool) -> None:
        self._waiters.append(_Waiter(connection, wants_progress))

    def serve(self, now: float) -> None:
        """Reply to all if it has ended, otherwise tell those who want it how far it is."""
        self._waiters = [each for each in self._waiters if each.connection.sock.fileno() >= 0]
        if not self._waiters:
            return
        reply = self._outcome()
        if reply is None:
            self._report(now)
        else:
            self.reply(reply)

    def reply(self, value: dict[str, Any]) -> None:
        """Reply the same to all of them."""
        while self._waiters:
            self._control.reply(self._waiters.pop().connection, value)

    def next_due(self, now: float) -> float | None:
        """Return when the next report is due, if a client wants any."""
        return now + REPORT_INTERVAL if any(each.wants_progress for each in self._waiters) else None

    def _report(self, now: float) -> None:
        wanting = [each for each in self._waiters if each.wants_progress and now >= each.told_at + REPORT_INTERVAL]
        progress = self._progress() if wanting else None
        for each in wanting:
            if progress is not None and (progress != each.told or now >= each.told_at + REPEAT_INTERVAL):
                each.told, each.told_at = progress, now
                self._control.send(each.connection, {"progress": progress.describe()})
