"""The roster in any history: hypothesis plays the processes, the user and the clock.

`make histories` plays at least a million steps; the suite some thousands.
"""

from __future__ import annotations

import os
from typing import ClassVar

import hypothesis
import pytest
from helpers.rosters import Machine
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from prefork.core.facts import (
    HandedOver,
    RecycleRequested,
    ReloadRequested,
    Started,
    StopRequested,
    SuccessorRolledBack,
    WorkerDied,
    WorkerReady,
    WorkerStoppedAccepting,
    WorkerUnable,
)
from prefork.core.lame_duck import AUTO, NO_DELAY, DrainDelay
from prefork.core.states import ServerPhase
from prefork.errors import ExitCode

#: How many histories, and of how many steps: the command for the long run sets them.
HISTORIES = int(os.environ.get("HISTORIES", "60"))
STEPS = int(os.environ.get("STEPS", "60"))

#: Histories at a time: hypothesis remembers all that it has tried of one run, some hundred kilobytes for each.
BATCH = 500

which = st.integers(0, 7)
limits = st.sampled_from([None, 5.0, 100.0])
delays = st.sampled_from([NO_DELAY, DrainDelay(0.5), DrainDelay(60.0), AUTO])


class Histories(RuleBasedStateMachine):
    """Each rule is something that can happen; `invariant` is what no history may break."""

    machine: Machine
    steps: ClassVar[int] = 0

    @initialize(
        slots=st.integers(1, 5),
        seed=st.integers(0, 2**32),
        obedient=st.booleans(),
        reload_drain=limits,
        delay=delays,
    )
    def start(self, slots: int, seed: int, obedient: bool, reload_drain: float | None, delay: DrainDelay) -> None:
        self.machine = Machine(slots, seed, reload_drain, delay)
        self.machine.obedient = obedient
        self.machine.tell(Started())

    def _pick(self, number: int) -> int | None:
        workers = sorted(self.machine.alive)
        return workers[number % len(workers)] if workers else None

    @rule(number=which)
    def ready(self, number: int) -> None:
        worker = self._pick(number)
        if worker is not None:
            self.machine.tell(WorkerReady(worker))

    @rule()
    def all_ready(self) -> None:
        for worker in sorted(self.machine.alive):
            self.machine.tell(WorkerReady(worker))

    @rule(number=which, clean=st.booleans())
    def die(self, number: int, clean: bool) -> None:
        worker = self._pick(number)
        if worker is not None:
            self.machine.die(worker, "exit status 0" if clean else "signal 9 (SIGKILL)", clean)

    @rule(number=which)
    def drained(self, number: int) -> None:
        """End a worker that was asked to end."""
        ending = sorted(set(self.machine.alive) & set(self.machine.drained + self.machine.killed))
        if ending:
            self.machine.die(ending[number % len(ending)], "exit status 0", True)

    @rule(number=which)
    def stops_accepting(self, number: int) -> None:
        asked = sorted(set(self.machine.alive) & set(self.machine.drained))
        if asked:
            self.machine.tell(WorkerStoppedAccepting(asked[number % len(asked)]))

    @rule(number=which)
    def unable(self, number: int) -> None:
        worker = self._pick(number)
        if worker is not None:
            self.machine.tell(WorkerUnable(worker, "broken"))

    @rule(number=which)
    def recycle(self, number: int) -> None:
        worker = self._pick(number)
        if worker is not None:
            self.machine.tell(RecycleRequested(worker, "1000 connections served"))

    @rule(number=which)
    def hang(self, number: int) -> None:
        worker = self._pick(number)
        if worker is not None:
            self.machine.hangs_since.setdefault(worker, self.machine.now)

    @rule()
    def facts_about_an_unknown_worker(self) -> None:
        self.machine.tell(WorkerReady(99_000))
        self.machine.tell(WorkerDied(99_000, "exit status 0"))

    @rule(more=st.sampled_from([-1, 1, 20]))
    def connect(self, more: int) -> None:
        """Have connections come, or one end that has sent nothing."""
        self.machine.arrivals = max(0, self.machine.arrivals + more)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 5.0, 40.0, 100.0]))
    def sleep(self, seconds: float) -> None:
        self.machine.sleep(seconds)

    @rule(seconds=st.sampled_from([1.0, 40.0, 3600.0]))
    def freeze(self, seconds: float) -> None:
        """Suspend the machine: the clock goes on, and no process runs."""
        self.machine.now += seconds

    @rule(reject=st.booleans())
    def forks(self, reject: bool) -> None:
        self.machine.refuse_forks = reject

    @rule()
    def reload(self) -> None:
        self.machine.tell(ReloadRequested("SIGHUP", self.machine.timing))

    @rule(more=st.sampled_from([-3, -1, 1, 2]))
    def scale(self, more: int) -> None:
        if len(self.machine.roster.slots) + more <= 8:
            self.machine.scale(more)

    @rule()
    def hand_over(self) -> None:
        self.machine.tell(HandedOver())

    @precondition(lambda self: self.machine.roster.phase is ServerPhase.LEAVING)
    @rule()
    def roll_back(self) -> None:
        self.machine.tell(SuccessorRolledBack())

    @rule(by=st.sampled_from(["SIGTERM", "SIGQUIT", "control socket"]), rare=st.integers(0, 5))
    def stop(self, by: str, rare: int) -> None:
        if rare == 0:
            self.machine.tell(StopRequested(by, at_once=by == "SIGQUIT", signal=by.startswith("SIG")))

    @invariant()
    def holds(self) -> None:
        Histories.steps += 1
        self.machine.check()

    def teardown(self) -> None:
        """Stop the server whatever has happened: every worker is asked, then killed, and none is forked any more."""
        machine = getattr(self, "machine", None)
        if machine is None or machine.finish is not None:
            return
        given_up = machine.roster.phase is ServerPhase.STOPPING and set(machine.killed) >= set(machine.alive)
        machine.tell(StopRequested("SIGTERM"))
        if machine.roster.phase is ServerPhase.LAME_DUCK:
            before = set(machine.drained)
            machine.sleep(60)
            assert machine.finish is not None or machine.roster.phase is ServerPhase.STOPPING, "a lame duck for ever"
            assert machine.finish is not None or machine.drained != before or not machine.alive
        spawned = machine.spawned
        machine.sleep(60)
        assert set(machine.killed) >= set(machine.alive), "a worker that does not end is killed"
        for worker in sorted(machine.alive):
            machine.die(worker, "signal 9 (SIGKILL)")
        assert machine.finish is not None
        assert machine.finish.code is ExitCode.OK or (given_up and machine.finish.reason)
        assert machine.spawned == spawned, "forked after the stop"
        assert machine.announced <= 1


@pytest.mark.deadline(3600)
def test_every_random_history_of_a_roster_keeps_its_invariants() -> None:
    Histories.steps = 0
    for done in range(0, HISTORIES, BATCH):
        count = min(BATCH, HISTORIES - done)
        settings = hypothesis.settings(max_examples=count, stateful_step_count=STEPS, deadline=None, database=None)
        run_state_machine_as_test(Histories, settings=settings)
    print(f"{Histories.steps} steps in {HISTORIES} histories: no invariant broken")
    assert Histories.steps >= 10 * HISTORIES
