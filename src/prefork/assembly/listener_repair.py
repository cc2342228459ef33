"""What becomes of listening sockets that a worker has spoiled for all: mended or bound anew, and told in a line each.

Finding and mending is `system/listeners.py`'s; when it is looked for is the supervisor's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ..errors import BindError
from ..events import Emit, ListenerBoundAnew, ListenerDamaged, ListenerReopened, ListenerRestored, escape_controls
from ..system.file_ownership import FileOwnership
from ..system.listeners import Damage, Listener, Listeners

#: Seconds between two times that an address is bound anew: a service that spoils it at once must not keep reloading.
ANEW_INTERVAL = 30.0


class ListenerRepair:
    """Mends `listeners`. `clock` gives seconds that never go back."""

    def __init__(self, listeners: Listeners, clock: Callable[[], float] = time.monotonic) -> None:
        self._listeners = listeners
        self._clock = clock
        self._anew: dict[str, float] = {}
        """When each address was bound anew last."""

    def repair(self, emit: Emit) -> dict[Listener, Listener]:
        """Look at all, and mend them. Those that had to be bound anew, with what takes their place: that is for the
        supervisor that owns the addresses alone."""
        found = self._listeners.repair()
        for damage in found:
            if damage.shut_down:
                emit(ListenerReopened(escape_controls(damage.address)))
            if damage.options and not damage.unrepaired:
                emit(ListenerRestored(escape_controls(damage.address), ", ".join(damage.options)))
        fresh: dict[Listener, Listener] = {}
        for damage in found:
            if damage.unrepaired:
                self._replace(damage, emit, fresh)
        return fresh

    def _replace(self, damage: Damage, emit: Emit, fresh: dict[Listener, Listener]) -> None:
        listener, options = damage.listener, ", ".join(damage.unrepaired)
        try:
            if listener not in fresh:
                self._refuse(listener)
                fresh[listener] = self._listeners.rebind(listener)
                self._anew[listener.requested] = self._clock()
        except (BindError, _Refused) as exc:
            emit(ListenerDamaged(escape_controls(damage.address), options, escape_controls(exc)))
        else:
            emit(ListenerBoundAnew(escape_controls(damage.address), options))

    def _refuse(self, listener: Listener) -> None:
        if self._listeners.ownership is not FileOwnership.OWNER:
            raise _Refused("it is for another supervisor to bind it anew")
        if listener.passed:
            raise _Refused("whoever has passed it on must bind it anew")
        before = self._anew.get(listener.requested)
        if before is not None and self._clock() - before < ANEW_INTERVAL:
            raise _Refused(f"it was bound anew less than {ANEW_INTERVAL:.0f} s ago")


class _Refused(Exception):
    """Why it is not bound anew."""


def replaced(listeners: Iterable[Listener], fresh: dict[Listener, Listener]) -> tuple[Listener, ...]:
    """The same, with what takes the place of some."""
    return tuple(fresh.get(listener, listener) for listener in listeners)
