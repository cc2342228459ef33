"""The roster, driven through random histories: whatever happens, who should be running stays right."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.core.roster import (
    AnnounceReady,
    Command,
    Drain,
    Fact,
    Finish,
    Kill,
    Note,
    Phase,
    Roster,
    Spawn,
    Spawned,
    SpawnFailed,
    Started,
    StopAsked,
    TimePassed,
    WorkerDied,
    WorkerReady,
    WorkerUnable,
)
from prefork.errors import ExitCode


class Machine:
    """A roster and the processes that its commands would have made."""

    def __init__(self, slots: int, seed: int = 0) -> None:
        self.slots = slots
        self.now = 1000.0
        self.dice = random.Random(seed)
        self.roster = Roster(slots, 30.0, self.dice.random)
        self.alive: dict[int, int] = {}
        self.drained: list[int] = []
        self.killed: list[int] = []
        self.announced = 0
        self.finish: Finish | None = None
        self.notes: list[str] = []
        self.refuse_forks = False
        self.spawned = 0

    def tell(self, fact: Fact) -> None:
        for command in self.roster.apply(fact, self.now):
            self._obey(command)

    def _obey(self, command: Command) -> None:
        assert self.finish is None, "a command after the end"
        match command:
            case Spawn():
                assert command.slot not in self.alive.values(), "two workers in a slot"
                if self.refuse_forks:
                    self.tell(SpawnFailed(command.worker, "no room"))
                    return
                self.spawned += 1
                self.alive[command.worker] = command.slot
                self.tell(Spawned(command.worker, 5000 + command.worker))
            case Drain():
                assert command.worker in self.alive
                assert command.worker not in self.drained, "asked twice"
                self.drained.append(command.worker)
            case Kill():
                assert command.worker in self.alive
                assert command.worker not in self.killed, "killed twice"
                self.killed.append(command.worker)
            case Note():
                self.notes.append(str(command.event))
            case AnnounceReady():
                self.announced += 1
            case Finish():
                assert not self.alive, "somebody is left"
                self.finish = command

    def die(self, worker: int, cause: str = "exit status 1") -> None:
        del self.alive[worker]
        self.tell(WorkerDied(worker, cause))

    def boot(self) -> None:
        self.tell(Started())
        for worker in list(self.alive):
            self.tell(WorkerReady(worker))

    def sleep(self, seconds: float) -> None:
        """Time passes as the supervisor lets it: it wakes when something is due."""
        end = self.now + seconds
        while (due := self.roster.next_due()) is not None and due <= end and self.finish is None:
            self.now = max(self.now, due)
            self.tell(TimePassed())
            due = self.roster.next_due()
            assert due is None or due > self.now, "it would spin"
        self.now = end


actions = st.lists(
    st.tuples(
        st.sampled_from(["ready", "die", "unable", "sleep", "sleep long", "refuse forks", "allow forks", "stale"]),
        st.integers(0, 10),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(st.integers(1, 5), actions, st.sampled_from(["SIGTERM", "SIGQUIT", "twice"]), st.integers())
def test_any_history(slots: int, history: list[tuple[str, int]], ending: str, seed: int) -> None:
    machine = Machine(slots, seed)
    machine.tell(Started())
    for what, which in history:
        workers = sorted(machine.alive)
        worker = workers[which % len(workers)] if workers else None
        if what == "ready" and worker is not None:
            machine.tell(WorkerReady(worker))
        elif what == "die" and worker is not None:
            machine.die(worker)
        elif what == "unable" and worker is not None:
            machine.tell(WorkerUnable(worker, "broken"))
        elif what == "stale":
            machine.tell(WorkerReady(99_000))
            machine.tell(WorkerDied(99_000, "exit status 0"))
        elif what.startswith("sleep"):
            machine.sleep(which * (10 if what == "sleep long" else 0.1))
        elif what.endswith("forks"):
            machine.refuse_forks = what == "refuse forks"
        assert len(machine.alive) <= slots
        if machine.roster.phase in (Phase.BOOTING, Phase.SERVING) and not machine.refuse_forks:
            # Each slot has a worker, or a time at which it gets one.
            for slot in machine.roster.slots:
                assert slot.number in machine.alive.values() or slot.due is not None
    if machine.roster.phase in (Phase.STOPPING, Phase.FINISHED):
        assert set(machine.killed) >= set(machine.alive)
        for worker in list(machine.alive):
            machine.die(worker)
        assert machine.finish is not None
        assert machine.finish.code in (ExitCode.SERVICE, ExitCode.CRASH_LOOP)
        assert machine.finish.reason
        return
    machine.tell(StopAsked("SIGQUIT" if ending == "SIGQUIT" else "SIGTERM", at_once=ending == "SIGQUIT"))
    if ending == "twice":
        machine.tell(StopAsked("SIGTERM"))
    if ending != "SIGTERM":
        assert set(machine.killed) >= set(machine.alive)
    spawned = machine.spawned
    machine.sleep(40)
    assert set(machine.killed) >= set(machine.alive), "a worker that does not end is killed"
    for worker in list(machine.alive):
        machine.die(worker, "signal 9 (SIGKILL)")
    assert machine.finish == Finish(ExitCode.OK)
    assert machine.roster.phase is Phase.FINISHED
    assert machine.spawned == spawned, "nobody is forked after the stop"
    assert machine.announced <= 1


def test_ready_is_announced_once_when_all_are() -> None:
    machine = Machine(2)
    machine.tell(Started())
    first, second = machine.alive
    machine.tell(WorkerReady(first))
    assert not machine.announced
    machine.tell(WorkerReady(second))
    assert machine.announced == 1
    assert "ready: 2 workers" in machine.notes
    machine.die(first)
    machine.tell(WorkerReady(max(machine.alive)))
    assert machine.announced == 1


def test_a_worker_that_had_been_ready_is_replaced_at_once() -> None:
    machine = Machine(2)
    machine.boot()
    machine.die(0, "signal 9 (SIGKILL)")
    assert sorted(machine.alive.values()) == [0, 1]
    assert machine.notes[-1] == "worker 0 (pid 5000) died: signal 9 (SIGKILL), restarting"


def test_a_service_that_does_not_boot_ends_the_program_with_its_reason() -> None:
    machine = Machine(3)
    machine.tell(Started())
    machine.tell(WorkerUnable(1, "service x:y: no module named 'x'"))
    machine.die(1, "exit status 3")
    assert sorted(machine.killed) == [0, 2]
    machine.die(0)
    machine.die(2)
    assert machine.finish == Finish(ExitCode.SERVICE, "service x:y: no module named 'x'")


def test_once_one_has_served_a_boot_failure_is_tried_again() -> None:
    machine = Machine(2)
    machine.tell(Started())
    machine.tell(WorkerReady(0))
    machine.tell(WorkerUnable(1, "database is away"))
    machine.die(1, "exit status 3")
    assert machine.finish is None
    assert "worker 1 cannot start: database is away" in machine.notes
    machine.sleep(1)
    assert sorted(machine.alive.values()) == [0, 1]


def test_a_crash_loop_ends_only_when_nobody_serves() -> None:
    machine = Machine(2)
    machine.boot()
    for _ in range(20):
        worker = max(machine.alive)
        if machine.alive[worker] == 1:
            machine.die(worker)
        machine.sleep(35)
    assert machine.finish is None, "worker 0 serves"
    for _ in range(20):
        for worker in list(machine.alive):
            machine.die(worker)
        machine.sleep(35)
    assert machine.finish is not None
    assert machine.finish.code is ExitCode.CRASH_LOOP


def test_a_refused_fork_is_told_once_and_tried_until_it_works() -> None:
    machine = Machine(1)
    machine.refuse_forks = True
    machine.tell(Started())
    machine.sleep(10)
    assert [note for note in machine.notes if "cannot fork" in note] == [
        "cannot fork worker 0: no room; trying again until it works"
    ]
    machine.refuse_forks = False
    machine.sleep(1)
    assert list(machine.alive.values()) == [0]


def test_a_worker_that_crashes_while_it_drains_is_told() -> None:
    machine = Machine(3)
    machine.tell(Started())
    machine.tell(WorkerReady(0))
    machine.tell(WorkerReady(1))
    machine.tell(StopAsked("SIGTERM"))
    machine.tell(WorkerDied(0, "exit status 0", clean=True))
    machine.tell(WorkerDied(1, "signal 11 (SIGSEGV)"))
    machine.tell(WorkerDied(1, "signal 11 (SIGSEGV)"))
    machine.alive.clear()
    machine.tell(WorkerDied(2, "signal 15 (SIGTERM)"))
    died = [note for note in machine.notes if "died" in note]
    assert died == ["worker 1 (pid 5001) died: signal 11 (SIGSEGV)"]
    assert machine.finish == Finish(ExitCode.OK)


def test_a_second_stop_is_at_once() -> None:
    machine = Machine(2)
    machine.boot()
    machine.tell(StopAsked("SIGTERM"))
    assert (sorted(machine.drained), machine.killed) == ([0, 1], [])
    machine.die(0, "exit status 0")
    machine.tell(StopAsked("SIGINT"))
    assert machine.killed == [1]
    machine.tell(StopAsked("SIGINT"))
    machine.die(1, "signal 9 (SIGKILL)")
    assert machine.finish == Finish(ExitCode.OK)
