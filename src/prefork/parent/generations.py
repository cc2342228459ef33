"""What each generation of workers is to be, and what the supervisor needs of who makes that up.

The supervisor knows a plan's numbers and nothing of what the workers get. How plans are made is `assembly`'s business;
when they change, the roster's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..core.worker_state import Timing
from ..system.file_ownership import FileOwnership
from ..system.handover import HandoverWriter
from ..system.scoreboard import FleetSetting


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """What a generation of workers is to be: their number, how patient the supervisor is with them, what it tells of
    the listeners, and what they get, of which it knows nothing."""

    workers: int
    timing: Timing
    limits: Mapping[FleetSetting, int]
    """What holds for all workers at once, as the scoreboard has it."""
    listeners: tuple[str, ...]
    equipment: object


class Resources(Protocol):
    """What the supervisor needs of who has put everything together."""

    def rebuild(self) -> GenerationSpec:
        """The plan for a reload, made of what the files say now. Raises PreforkError; nothing has changed then."""

    def prepare_fork(self, plan: GenerationSpec) -> None:
        """A worker of this plan is about to be forked. Raises PreforkError if it cannot be."""

    def commit(self, plan: GenerationSpec) -> None:
        """Every worker is of this plan now."""

    def release_unused(self, plans: Collection[GenerationSpec]) -> None:
        """No plan but these will be used any more: with none, no worker will be forked."""

    def end_listening(self) -> None:
        """No worker accepts any more, and none will."""

    def notify_ready(self) -> None:
        """Every worker accepts, for the first time."""

    def set_ownership(self, tenure: FileOwnership) -> None:
        """Whose the files are that outlive a hand-over (sockets, pidfile)."""

    def export(self, channel: int, workers: int) -> tuple[HandoverWriter, Mapping[str, str]]:
        """What a successor gets, which is to have so many workers. Raises OSError."""

    def repair_listeners(self, plan: GenerationSpec) -> GenerationSpec | None:
        """A worker has ended otherwise than it was asked to: what it shared with the rest may need repair. `plan` with
        other listeners, where some could not be repaired: workers of it have to take the place of those that run."""

    def notify_watchdog(self) -> None:
        """All is well; for a watchdog."""

    def reopen_logs(self) -> None:
        """They have been moved away."""


class Generations:
    """Which generation is made after which plan; the one owner of that."""

    def __init__(self, first: GenerationSpec) -> None:
        self._plans = {0: first}
        self._next: GenerationSpec | None = None
        """Of a reload that was asked for and has not begun."""

    def newest(self) -> GenerationSpec:
        """That of the last generation."""
        return self._plans[max(self._plans)]

    def of(self, generation: int) -> GenerationSpec:
        """That of one that a worker may be forked of."""
        return self._plans[generation]

    def ask(self, plan: GenerationSpec) -> None:
        """A reload with it was asked for; it takes the place of one that has not begun."""
        self._next = plan

    def begin(self, generation: int) -> GenerationSpec | None:
        """The reload has begun. Its plan, if it had one of its own."""
        plan, self._next = self._next, None
        if plan is not None:
            self._plans[generation] = plan
        return plan

    def all(self) -> list[GenerationSpec]:
        """Everything that may be needed yet."""
        return [*self._plans.values(), *([self._next] if self._next else [])]

    def drop(self, used: Collection[int], expected: bool) -> bool:
        """Forget generations that are not in `used`, and what was asked for, unless a reload is still `expected` to
        begin. Whether anything was forgotten."""
        unused = [generation for generation in self._plans if generation not in used]
        for generation in unused:
            del self._plans[generation]
        refused = self._next is not None and not expected
        if refused:
            self._next = None
        return bool(unused) or refused
