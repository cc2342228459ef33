"""Renewed TLS files on their way to workers: into the specs of later forks, and to those that run by their channels.

When they are read, and what is refused, is decided by the owner of the resources; nothing here reads a file. A worker
tells nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from ..core.roster import Roster
from ..system.descriptors import Descriptor
from ..system.processes import System
from .generations import C, RenewedTLS, Resources
from .reload import Reloads
from .workers import Workers

#: Seconds until a handout is offered again to a worker that took none: it hangs, or its channel is full.
RETRY = 0.5


@dataclass(slots=True)
class _Handout:
    """A file that is handed out, and the workers that have not got it."""

    file: Descriptor
    workers: set[int]
    offer_at: float


class TLSRenewal(Generic[C]):
    """Owns the handout that workers wait for: only the last one, because it replaces those before.

    `reload` asks for a reload, with the reason.
    """

    def __init__(
        self,
        resources: Resources[C],
        reloads: Reloads[C],
        workers: Workers,
        roster: Roster,
        system: System,
        reload: Callable[[str], object],
    ) -> None:
        self._resources = resources
        self._reloads = reloads
        self._workers = workers
        self._roster = roster
        self._system = system
        self._reload = reload
        self._handout: _Handout | None = None

    # --- polling ------------------------------------------------------------------------------------------------------

    def interests(self, now: float) -> dict[int, int]:
        return {}

    def next_due(self, now: float) -> float | None:
        look_at = self._resources.next_tls_look()
        offer_at = None if self._handout is None else self._handout.offer_at
        return min((each for each in (look_at, offer_at) if each is not None), default=None)

    def collect(self, now: float) -> None:
        """Look at the files if that is due, and hand out what is new."""
        outcome = self._renew(now)
        if isinstance(outcome, str):
            self._reload(outcome)
        elif outcome is not None:
            self._begin(outcome.file, self._reloads.change_specs(outcome.change), now)
        if self._handout is not None and now >= self._handout.offer_at:
            self._offer(self._handout, now)

    def _renew(self, now: float) -> RenewedTLS[C] | str | None:
        spec, due = self._reloads.newest(self._roster.generation), self._resources.next_tls_look()
        if due is None or now < due:
            return self._resources.renew_tls(spec, now)
        with self._workers.giving_up_reserve():
            return self._resources.renew_tls(spec, now)

    def close(self) -> None:
        """Hand out nothing more (idempotent)."""
        if self._handout is not None:
            self._handout.file.close()
            self._handout = None

    def _begin(self, file: Descriptor, generations: set[int], now: float) -> None:
        waiting = set() if self._handout is None else self._handout.workers
        self.close()
        self._system.close_in_child(file)
        running = {each.id for each in self._roster.workers.values() if each.pid and each.generation in generations}
        self._handout = _Handout(file, running | waiting, now)

    def _offer(self, handout: _Handout, now: float) -> None:
        handout.workers = {each for each in handout.workers if not self._workers.hand_out(each, handout.file)}
        handout.offer_at = now + RETRY
        if not handout.workers:
            self.close()
