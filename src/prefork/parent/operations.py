"""What can be asked of a running server, by a client, a signal or a changed source: reload, upgrade, scale, stop.

Refuses a request with the reason, or tells the roster of it. `control_commands.py` knows the clients that wait for the
outcome, and the supervisor carries out what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

from ..core.facts import Fact, Failure, ScaleRequested, StopRequested
from ..core.progress import Progress, of_reload
from ..core.rolling_restart import Purpose
from ..core.roster import Roster
from ..events import Emit, OldConnectionsStay, ReloadIgnored, ScaleIgnored, UpgradeIgnored
from ..system.processes import System
from . import old_workers
from .generations import C
from .reload import Reloads
from .reload_history import ReloadHistory
from .stopping import Stopping
from .takeover import Takeover
from .workers import Workers

#: The outcome of a reload or an upgrade that a stop has ended.
_STOPPED = Failure("the server was stopped meanwhile")


class Operations(Generic[C]):
    """Has the requests carried out by `apply`, which takes one fact. Owns nothing."""

    def __init__(
        self,
        roster: Roster,
        workers: Workers,
        reloads: Reloads[C],
        history: ReloadHistory,
        takeover: Takeover,
        stopping: Stopping,
        system: System,
        emit: Emit,
        status: Callable[[], dict[str, Any]],
        apply: Callable[[Fact], None],
    ) -> None:
        self._roster = roster
        self._workers = workers
        self._reloads = reloads
        self._history = history
        self._takeover = takeover
        self._stopping = stopping
        self._system = system
        self._emit = emit
        self._apply = apply
        self.status = status

    @property
    def max_workers(self) -> int:
        return self._workers.max_workers

    # --- reload -------------------------------------------------------------------------------------------------------

    def start_reload(self, by: str) -> Failure | None:
        """Begin or queue a reload. Return the reason if it is refused."""
        refusal = self._roster.refusal() or self._takeover.reload_refusal()
        generation = self._roster.generation + 1
        reload = refusal or self._reloads.request(by, generation)
        if isinstance(reload, Failure):
            if refusal is None:
                self._history.failed(generation, reload.reason, self._system.monotonic())
            return self._refuse(ReloadIgnored(by, reload.reason))
        self._apply(reload)
        return None

    def reload_summary(self) -> dict[str, Any]:
        """Return what the last reload has changed and left behind."""
        change = self._reloads.change
        return {"added": list(change.added), "removed": list(change.removed), "old": self.old_connections().fields()}

    def upgrade_summary(self) -> dict[str, Any]:
        """Return what stays with this supervisor after it has handed over."""
        return {"old": self.old_connections().fields()}

    def old_connections(self) -> OldConnectionsStay:
        return old_workers.connections_of(self._roster, self._workers, self._system.monotonic())

    def reload_progress(self) -> Progress:
        return of_reload(self._roster)

    def reload_outcome(self) -> int | Failure | None:
        return None if self._roster.reloading() else self._reloads.outcome or _STOPPED

    # --- upgrade ------------------------------------------------------------------------------------------------------

    def start_upgrade(self, by: str) -> Failure | None:
        """Begin an upgrade: start another supervisor, which takes over. Return the reason if it is refused."""
        stopping = self._roster.drains_at() is not None
        refusal = (not stopping and self._takeover.upgrade_refusal()) or self._roster.upgrade_refusal()
        if refusal is not None:
            return self._refuse(UpgradeIgnored(by, refusal.reason))
        timing = self._reloads.newest(self._roster.generation).timing
        for fact in self._takeover.begin(by, timing, self._system.monotonic()):
            self._apply(fact)
        return None

    def upgrade_progress(self) -> Progress:
        return self._takeover.progress()

    def upgrade_outcome(self) -> int | Failure | None:
        return None if self._takeover.upgrading(self._roster.accepting()) else self._takeover.outcome or _STOPPED

    # --- scale and stop -----------------------------------------------------------------------------------------------

    def scale_waits(self, workers: int) -> bool:
        """Return whether a `scale` to `workers` adds some, which a reload under way starts when it gets to them."""
        rolling = self._roster.rolling
        reloading = rolling is not None and rolling.purpose is Purpose.RELOAD
        return reloading and workers > len(self._roster.slots)

    def scale(self, by: str, workers: int) -> Failure | None:
        refusal = self._roster.refusal() or self._reloads.too_many(workers)
        if refusal is None:
            self._reloads.on_scaled()
            self._apply(ScaleRequested(by, workers))
        else:
            self._emit(ScaleIgnored(by, refusal.reason))
        return refusal

    def stop(self, by: str, at_once: bool, by_signal: bool = False) -> None:
        request = StopRequested(by, at_once, signal=by_signal)
        for fact in (*self._takeover.stop(request, self._system.monotonic()), request):
            self._apply(fact)

    def stop_progress(self) -> Progress:
        return self._stopping.progress(self._system.monotonic())

    def _refuse(self, ignored: ReloadIgnored | UpgradeIgnored) -> Failure:
        self._emit(ignored)
        return Failure(str(ignored))
