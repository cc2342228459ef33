"""A roster and the processes that its commands would have made, shared by the tests of its histories.

Carries out commands, remembers what they led to, and asserts what always holds.
"""

from __future__ import annotations

import random

from prefork.core.facts import (
    AnnounceReady,
    BeginDrain,
    BeginGeneration,
    Command,
    Drain,
    DumpStacks,
    EmitEvent,
    Fact,
    Finish,
    GenerationFailed,
    GenerationServes,
    HeartbeatsRead,
    HurryDrain,
    Kill,
    ReadHeartbeats,
    ReadTraffic,
    ScaleRequested,
    Spawn,
    Spawned,
    SpawnFailed,
    Started,
    TimePassed,
    TrafficRead,
    WorkerDied,
    WorkerReady,
    WorkerStoppedAccepting,
)
from prefork.core.fleet import MAX_OLD_WORKERS
from prefork.core.lame_duck import NO_DELAY, DrainDelay
from prefork.core.roster import Roster
from prefork.core.states import ServerPhase, Timing


class Machine:
    """A roster and the processes that its commands would have made."""

    def __init__(
        self, slots: int, seed: int = 0, reload_drain: float | None = None, drain_delay: DrainDelay = NO_DELAY
    ) -> None:
        self.slots = slots
        self.timing = Timing(reload_drain=reload_drain, drain_delay=drain_delay)
        self.reload_drain = reload_drain
        self.arrivals = 0
        """Connections that have come."""
        self.ends = False
        """Whether the workers were told that none accepts any more."""
        self.obedient = True
        """Whether workers stop accepting as soon as they are asked to drain."""
        self.now = 1000.0
        self.roster = Roster(slots, self.timing, random.Random(seed).random)
        self.alive: dict[int, int] = {}
        self.drained: list[int] = []
        self.until: dict[int, float | None] = {}
        """When the connections of each worker that drains are aborted."""
        self.hurried: list[tuple[int, str]] = []
        """Old workers that have to end, although the server does not stop, and why."""
        self.killed: list[int] = []
        self.announced = 0
        self.begun = 0
        """The last generation that began."""
        self.served: list[tuple[int, int]] = []
        """Each generation that came to serve, with the one before it."""
        self.failed = 0
        """Reloads that were rolled back."""
        self.finish: Finish | None = None
        self.notes: list[str] = []
        self.refuse_forks = False
        self.spawned = 0
        self.hangs_since: dict[int, float] = {}
        self.dumped: list[int] = []
        self.died: list[int] = []
        self.back_off: dict[int, tuple[int, float]] = {}
        self.retired_at: dict[int, float] = {}

    def tell(self, fact: Fact) -> None:
        for command in self.roster.apply(fact, self.now):
            self._obey(command)

    def _obey(self, command: Command) -> None:
        assert self.finish is None or isinstance(command, Finish), "a command after the end"
        match command:
            case Spawn():
                assert self.serving(command.slot) <= 1, "no more than a worker and its successor"
                if self.refuse_forks:
                    self.tell(SpawnFailed(command.worker_id, "no room"))
                    return
                self.spawned += 1
                assert command.generation in self.roster.generations()
                self.alive[command.worker_id] = command.slot
                self.tell(Spawned(command.worker_id, 5000 + command.worker_id))
            case Drain():
                assert command.worker_id in self.alive
                assert command.worker_id not in self.drained, "asked twice"
                assert self.ends or self.roster.phase is not ServerPhase.STOPPING, "the last to accept must know it"
                self.drained.append(command.worker_id)
                self.until[command.worker_id] = command.until
                if self.obedient:
                    self.tell(WorkerStoppedAccepting(command.worker_id))
                self.retired_at[command.worker_id] = self.now
            case HurryDrain():
                assert command.worker_id in self.alive
                before = self.until[command.worker_id]
                assert before is None or command.until < before, "no worker gets longer than it had"
                self.until[command.worker_id] = command.until
                self.hurried += [(command.worker_id, command.why)] if command.why else []
            case ReadHeartbeats():
                now = self.now
                self.tell(HeartbeatsRead({w: now - self.hangs_since.get(w, now) for w in self.alive}))
            case ReadTraffic():
                self.tell(TrafficRead(self.arrivals))
            case BeginDrain():
                self.ends = True
            case DumpStacks():
                self.dumped.append(command.worker_id)
            case Kill():
                assert command.worker_id in self.alive
                assert command.worker_id not in self.killed, "killed twice"
                self.killed.append(command.worker_id)
            case BeginGeneration():
                assert command.generation > self.begun
                self.begun = command.generation
            case GenerationServes():
                assert command.previous == (self.served[-1][0] if self.served else 0)
                self.served.append((command.generation, command.previous))
            case GenerationFailed():
                self.failed += 1
            case EmitEvent():
                self.notes.append(str(command.event))
            case AnnounceReady():
                self.announced += 1
            case Finish():
                assert not self.alive, "a worker is left"
                self.finish = command

    def serving(self, slot: int) -> int:
        """Count the workers of a slot that were not asked to end."""
        return sum(at == slot and w not in self.asked() for w, at in self.alive.items())

    def asked(self) -> set[int]:
        """Return the workers that were asked to end, and those that hang, which are about to be killed."""
        return {*self.drained, *self.killed, *self.dumped}

    def die(self, worker: int, cause: str = "exit status 1", clean: bool = False, connections: int = 0) -> None:
        del self.alive[worker]
        assert worker not in self.died, "reaped twice"
        self.died.append(worker)
        self.tell(WorkerDied(worker, cause, clean, connections=connections))

    def check(self) -> None:
        """Assert what holds at any moment."""
        if self.roster.phase not in (ServerPhase.BOOTING, ServerPhase.SERVING, ServerPhase.LAME_DUCK):
            return
        assert not self.ends, "none is to accept, and the server serves"
        is_lame_duck = self.roster.phase is ServerPhase.LAME_DUCK
        assert (self.roster.drains_at() is not None) is is_lame_duck, "a delay without a lame duck, or the reverse"
        target = len(self.roster.slots)
        asked = self.asked()
        for slot in set(self.alive.values()):
            old = [w for w, at in self.alive.items() if at == slot and w in self.until and w not in self.dumped]
            unhurried = [w for w in old if (self.until[w] or self.now + 31) > self.now + 30]
            assert len(unhurried) <= MAX_OLD_WORKERS, "too many old workers that need not hurry"
        assert len(set(self.alive) - asked) <= target + 1, "at most one more than wanted"
        dying = [worker for worker in (*self.killed, *self.dumped) if worker in self.alive]
        for slot in self.roster.slots:
            # A killed worker gets its successor once it is reaped.
            provided = self.serving(slot.number) or slot.number in [self.alive[worker] for worker in dying]
            provided = provided or (self.roster.rolling is not None and slot.number in self.roster.rolling.remaining)
            assert provided or slot.due is not None, "a slot forgotten"
        for worker, slot_number in self.alive.items():
            assert worker in asked or slot_number < target, "a worker that is not wanted"
        for slot in self.roster.slots:
            failures, back_off = self.back_off.get(slot.number, (0, 0.0))
            history = slot.history
            assert history.back_off >= back_off or history.failures < failures, "back-off shrinks while it fails"
            self.back_off[slot.number] = (history.failures, history.back_off)
        if self.roster.rolling is not None:
            waits_for = {self.roster.rolling.successor, *self.roster.rolling.retired}
            assert waits_for & set(self.alive), "a reload that waits for no worker"

    def scale(self, more: int) -> None:
        self.tell(ScaleRequested("SIGTTIN", max(1, len(self.roster.slots) + more)))

    def boot(self) -> None:
        self.tell(Started())
        for worker in list(self.alive):
            self.tell(WorkerReady(worker))

    def sleep(self, seconds: float) -> None:
        """Let time pass as the supervisor does, which wakes when something is due."""
        end = self.now + seconds
        while (due := self.roster.next_due(self.now)) is not None and due <= end and self.finish is None:
            self.now = max(self.now, due)
            self.tell(TimePassed())
            due = self.roster.next_due(self.now)
            assert due is None or due > self.now, "it would spin"
        self.now = end
