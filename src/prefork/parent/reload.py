"""A reload as the supervisor does it: make a new spec of what the files say, and put it in force once it serves.

Returns facts for the roster, which decides when a generation begins. It never calls the supervisor.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Generic

from ..core.facts import Failure, GenerationFailed, GenerationServes, ReloadRequested, ScaleRequested
from ..errors import PreforkError, reason_of
from ..events import Emit, ListenersChanged, ReloadFailed, SupervisorFailed
from ..text import escape_controls
from .generations import C, GenerationSpec, Resources
from .workers import MIN_WORKERS


class Reloads(Generic[C]):
    """Owns the specs of all generations. A queued reload is the spec of a generation that has not begun."""

    def __init__(self, first: GenerationSpec[C], resources: Resources[C], emit: Emit, max_workers: int) -> None:
        self._specs = {0: first}
        """Those from which a worker may still be forked, by generation; 0 is the first."""
        self._resources = resources
        self._emit = emit
        self.max_workers = max_workers
        self.outcome: int | Failure | None = None
        """How the last requested reload ended: its generation, or why it failed; None while it is not known."""
        self.change = ListenersChanged((), ())
        """What the last reload has changed of the addresses."""
        self._scaled = False
        """Whether `scale` has set the number of workers after the last reload was requested."""

    def spec(self, generation: int) -> GenerationSpec[C]:
        return self._specs[generation]

    def spec_or_newest(self, generation: int) -> GenerationSpec[C]:
        """Return the spec of a generation; of the newest if it is of no use any more, as its last workers may ask."""
        return self._specs.get(generation) or self._specs[max(self._specs)]

    def newest(self, begun: int) -> GenerationSpec[C]:
        """Return the spec of the last generation up to `begun` that is still in use."""
        return self._specs[max(each for each in self._specs if each <= begun)]

    def request(self, by: str, generation: int) -> ReloadRequested | Failure:
        """Prepare `generation`, the next one to begin; it replaces a queued reload."""
        self.outcome = None
        self._scaled = False
        spec = self._rebuild()
        if isinstance(spec, Failure):
            return spec
        refusal = self.too_many(spec.workers)
        if refusal is not None:
            # The new addresses are bound already. Left open, they would accept clients that get no answer.
            self.release_sockets()
            return refusal
        return self._add(by, generation, spec)

    def repair(self, generation: int, allowed: bool) -> ReloadRequested | None:
        """Repair the listeners. If some had to be bound again and a reload is `allowed`, prepare `generation` to have
        them, otherwise workers would go on with the damaged ones."""
        spec = self._resources.repair_listeners(self._specs[max(self._specs)])
        return self._add("a listener was bound again", generation, spec) if spec is not None and allowed else None

    def on_serves(self, command: GenerationServes) -> ScaleRequested | None:
        """Put the generation in force. A new number of workers in the settings applies from now on; a number that
        was set by `scale` stays if the settings have not changed, or if it was set after the request."""
        self.outcome = command.generation
        spec, previous = self._specs[command.generation], self._specs[command.previous]
        self._resources.commit(spec)
        self.change = ListenersChanged(
            tuple(each for each in spec.listeners if each not in previous.listeners),
            tuple(each for each in previous.listeners if each not in spec.listeners),
        )
        if self.change.added or self.change.removed:
            self._emit(self.change)
        keeps = self._scaled or spec.workers == previous.workers
        return None if keeps else ScaleRequested("reload", spec.workers)

    def on_scaled(self) -> None:
        """Keep a number of workers that was set by `scale` over the reload under way."""
        self._scaled = True

    def on_failed(self, command: GenerationFailed) -> None:
        self.outcome = Failure(str(ReloadFailed(command.slot, command.reason)))

    def change_specs(self, change: Callable[[GenerationSpec[C]], GenerationSpec[C]]) -> set[int]:
        """Replace each spec by what `change` returns for it. Return the generations whose spec has changed."""
        changed = {generation: change(spec) for generation, spec in self._specs.items()}
        different = {generation for generation, spec in changed.items() if spec is not self._specs[generation]}
        self._specs = changed
        return different

    def forget_unused(self, used: set[int]) -> None:
        """Drop the generations from which no worker will be forked, and close the sockets that only they have."""
        unused = self._specs.keys() - used
        for generation in unused:
            del self._specs[generation]
        if unused:
            self.release_sockets()

    def release_sockets(self) -> None:
        self._resources.release_unused(self._specs.values())

    def too_many(self, workers: int) -> Failure | None:
        if workers <= self.max_workers:
            return None
        return Failure(
            f"workers = {workers}: at most {self.max_workers} until a restart "
            f"(twice the workers at the start, at least {MIN_WORKERS})"
        )

    def _add(self, by: str, generation: int, spec: GenerationSpec[C]) -> ReloadRequested:
        replaces_queued = generation in self._specs
        self._specs[generation] = spec
        if replaces_queued:
            self.release_sockets()
        return ReloadRequested(by, spec.timing)

    def _rebuild(self) -> GenerationSpec[C] | Failure:
        try:
            return self._resources.rebuild()
        except PreforkError as exc:
            return Failure(str(exc))
        except (OSError, MemoryError) as exc:
            return Failure(f"the settings could not be loaded: {escape_controls(reason_of(exc))}")
        except Exception as exc:
            # Whatever the files hold must not end what serves.
            self._emit(SupervisorFailed("reload", escape_controls(repr(exc)), traceback.format_exc()))
            return Failure(f"the settings could not be loaded: {escape_controls(repr(exc))}")
