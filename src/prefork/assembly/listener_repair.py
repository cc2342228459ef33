"""Repair listening sockets that a worker has damaged for all workers: reset them or bind them again, and log each.

What is damaged, and how it is reset, is in `system/listeners.py`; when to look is decided in `parent/supervisor.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import BindError
from ..events import Emit, ListenerDamaged, ListenerRebound, ListenerReopened, ListenerRestored
from ..system.file_ownership import FileOwnership
from ..system.listeners import Listener, Listeners
from ..text import escape_controls

#: Minimum seconds between two rebinds of an address; otherwise a service that damages it would reload without end.
REBIND_INTERVAL = 30.0


class ListenerRepair:
    """Repairs `listeners`, which it does not own. `clock` returns seconds that never go back."""

    def __init__(self, listeners: Listeners, clock: Callable[[], float] = time.monotonic) -> None:
        self._listeners = listeners
        self._clock = clock
        self._rebound: dict[str, float] = {}
        """The time of the last rebind of each address."""

    def repair(self, emit: Emit) -> dict[Listener, Listener]:
        """Check and reset every socket, then return each listener that had to be bound again, with its replacement.

        Only the supervisor that owns the addresses binds them again.
        """
        found = self._listeners.repair()
        for damage in found:
            if damage.shut_down:
                emit(ListenerReopened(escape_controls(damage.address)))
            if damage.options and not damage.unrepaired:
                emit(ListenerRestored(escape_controls(damage.address), ", ".join(damage.options)))
        fresh: dict[Listener, Listener] = {}
        for damage in found:
            if damage.unrepaired:
                address, options = escape_controls(damage.address), ", ".join(damage.unrepaired)
                failure = self._rebind(damage.listener, fresh)
                emit(
                    ListenerRebound(address, options)
                    if failure is None
                    else ListenerDamaged(address, options, escape_controls(failure))
                )
        return fresh

    def _rebind(self, listener: Listener, fresh: dict[Listener, Listener]) -> str | None:
        """Put a replacement for `listener` into `fresh`, and return None; or return why there is none."""
        if listener in fresh:
            return None
        if self._listeners.ownership is not FileOwnership.OWNER:
            return "it belongs to another supervisor"
        if listener.passed:
            return "the program that passed it on must bind it again"
        before = self._rebound.get(listener.requested)
        if before is not None and self._clock() - before < REBIND_INTERVAL:
            return f"it was bound again less than {REBIND_INTERVAL:.0f} s ago"
        try:
            fresh[listener] = self._listeners.rebind(listener)
        except BindError as exc:
            return str(exc)
        self._rebound[listener.requested] = self._clock()
        return None
