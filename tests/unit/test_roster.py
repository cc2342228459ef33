"""The roster, driven through random histories: whatever happens, who should be running stays right."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.core.facts import (
    AnnounceReady,
    Command,
    Drain,
    Dump,
    Fact,
    Finish,
    HeartbeatsRead,
    Kill,
    Note,
    ReadHeartbeats,
    ReloadAsked,
    ScaleAsked,
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
from prefork.core.roster import Phase, Roster, State
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
        self.hangs_since: dict[int, float] = {}
        self.dumped: list[int] = []

    def tell(self, fact: Fact) -> None:
        for command in self.roster.apply(fact, self.now):
            self._obey(command)

    def _obey(self, command: Command) -> None:
        assert self.finish is None, "a command after the end"
        match command:
            case Spawn():
                assert self.serving(command.slot) <= 1, "no more than a worker and its successor"
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
            case ReadHeartbeats():
                now = self.now
                self.tell(HeartbeatsRead({w: now - self.hangs_since.get(w, now) for w in self.alive}))
            case Dump():
                self.dumped.append(command.worker)
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

    def serving(self, slot: int) -> int:
        """Workers of a slot that nobody has asked to end."""
        return sum(at == slot and w not in self.drained and w not in self.killed for w, at in self.alive.items())

    def die(self, worker: int, cause: str = "exit status 1") -> None:
        del self.alive[worker]
        self.tell(WorkerDied(worker, cause))

    def check(self) -> None:
        """What holds at any moment."""
        if self.roster.phase not in (Phase.BOOTING, Phase.SERVING):
            return
        target = len(self.roster.slots)
        asked = set(self.drained) | set(self.killed)
        assert len(set(self.alive) - asked) <= target + 1, "at most one more than wanted"
        dying = [worker for worker in (*self.killed, *self.dumped) if worker in self.alive]
        for slot in self.roster.slots:
            # One that was killed has a successor when it has been reaped.
            provided = self.serving(slot.number) or slot.number in [self.alive[worker] for worker in dying]
            assert provided or slot.due is not None, "a slot forgotten"
        for worker, slot_number in self.alive.items():
            assert worker in asked or slot_number < target, "a worker that nobody wants"
        if self.roster.reload is not None:
            assert self.roster.reload.successor in self.alive, "a reload that waits for nobody"

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
        st.sampled_from(
            ["ready", "ready", "ready", "die", "unable", "sleep", "sleep long", "refuse forks", "allow forks", "stale"]
            + ["reload", "more", "fewer", "hang"]
        ),
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
        elif what == "reload":
            machine.tell(ReloadAsked("SIGHUP"))
        elif what == "hang" and worker is not None:
            machine.hangs_since.setdefault(worker, machine.now)
        elif what in ("more", "fewer"):
            machine.tell(ScaleAsked("SIGTTIN", 1 if what == "more" else -1))
        machine.check()
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


# --- reload and scale -------------------------------------------------------------------------------------------------


def newest(machine: Machine) -> int:
    return max(machine.alive)


def test_a_reload_replaces_one_slot_at_a_time_each_successor_ready_first() -> None:
    machine = Machine(3)
    machine.boot()
    machine.tell(ReloadAsked("SIGHUP"))
    for slot in range(3):
        assert len(machine.alive) == 4
        assert machine.drained == list(range(slot)), "nobody drains before the successor is ready"
        assert machine.alive[newest(machine)] == slot
        machine.tell(WorkerReady(newest(machine)))
        assert machine.drained == list(range(slot + 1))
        machine.die(slot, "exit status 0")
    assert sorted(machine.alive.values()) == [0, 1, 2]
    assert "reloaded: every worker is of generation 1" in machine.notes
    assert {worker.generation for worker in machine.roster.workers.values()} == {1}
    assert not machine.killed


def test_what_does_not_boot_never_replaces_what_runs() -> None:
    machine = Machine(3)
    machine.boot()
    machine.tell(ReloadAsked("SIGHUP"))
    machine.tell(WorkerReady(newest(machine)))
    bad = newest(machine)
    machine.tell(WorkerUnable(bad, "service x:y: SyntaxError"))
    machine.die(bad, "exit status 3")
    assert machine.drained == [0]
    assert machine.roster.reload is None
    assert any("reload failed" in note and "SyntaxError" in note for note in machine.notes)
    machine.sleep(100)
    assert sorted(machine.alive) == [0, 1, 2, 3]


def test_a_successor_that_is_not_ready_in_time_is_killed_and_the_reload_is_off() -> None:
    machine = Machine(1)
    machine.boot()
    machine.tell(ReloadAsked("SIGHUP"))
    machine.sleep(61)
    assert machine.killed == [1]
    machine.die(1, "signal 9 (SIGKILL)")
    assert any("not ready after 60 s" in note for note in machine.notes)
    assert list(machine.alive) == [0]


def test_a_predecessor_that_dies_meanwhile_leaves_its_slot_to_the_successor() -> None:
    machine = Machine(1)
    machine.boot()
    machine.tell(ReloadAsked("SIGHUP"))
    machine.die(0)
    machine.sleep(100 - 50)
    assert list(machine.alive) == [1], "no third one"
    machine.tell(WorkerReady(1))
    assert machine.drained == []
    assert machine.roster.reload is None


def test_when_both_die_the_slot_is_filled_again() -> None:
    machine = Machine(1)
    machine.boot()
    machine.tell(ReloadAsked("SIGHUP"))
    machine.die(0)
    machine.die(1)
    machine.sleep(1)
    assert list(machine.alive) == [2]


def test_asked_twice_it_reloads_twice_and_not_at_once() -> None:
    machine = Machine(2)
    machine.boot()
    for _ in range(3):
        machine.tell(ReloadAsked("SIGHUP"))
    for _ in range(4):
        machine.tell(WorkerReady(newest(machine)))
    assert machine.roster.generation == 2
    assert machine.roster.reload is None
    assert machine.drained == [0, 1, 2, 3]


def test_a_stop_ends_a_reload() -> None:
    machine = Machine(2)
    machine.boot()
    machine.tell(ReloadAsked("SIGHUP"))
    machine.tell(StopAsked("SIGTERM"))
    assert sorted(machine.drained) == [0, 1, 2]
    for worker in list(machine.alive):
        machine.die(worker, "exit status 0")
    assert machine.finish == Finish(ExitCode.OK)


def test_one_more_and_one_fewer() -> None:
    machine = Machine(1)
    machine.boot()
    machine.tell(ScaleAsked("SIGTTIN", 1))
    assert sorted(machine.alive.values()) == [0, 1]
    machine.tell(WorkerReady(1))
    machine.tell(ScaleAsked("SIGTTOU", -1))
    assert machine.drained == [1]
    machine.die(1, "exit status 0")
    machine.tell(ScaleAsked("SIGTTOU", -1))
    assert sorted(machine.alive) == [0], "the last one stays"
    machine.sleep(100)
    assert sorted(machine.alive) == [0]
    assert all(worker.state is State.READY for worker in machine.roster.workers.values())


# --- hangs ------------------------------------------------------------------------------------------------------------


def test_a_hung_worker_is_dumped_killed_and_replaced() -> None:
    machine = Machine(2)
    machine.boot()
    machine.sleep(20)
    machine.hangs_since[0] = machine.now
    machine.sleep(29.5)
    assert machine.dumped == []
    machine.sleep(1.5)
    assert (machine.dumped, machine.killed) == ([0], [0])
    machine.die(0, "signal 9 (SIGKILL)")
    assert sorted(machine.alive.values()) == [0, 1]
    assert any("worker 0 (pid 5000) hangs" in note for note in machine.notes)


def test_after_a_pause_of_everybody_nobody_is_judged_by_it() -> None:
    """The machine slept, or the whole group was frozen: our clock ran, theirs did not."""
    machine = Machine(2)
    machine.boot()
    machine.sleep(20)
    machine.hangs_since = {0: machine.now, 1: machine.now}
    machine.now += 3600
    machine.tell(TimePassed())
    assert machine.dumped == []
    # They wake a moment later than we do, and beat before the next look.
    machine.hangs_since.clear()
    machine.sleep(100)
    assert machine.dumped == []


def test_one_that_hangs_while_it_drains_is_not_waited_for() -> None:
    machine = Machine(1)
    machine.boot()
    machine.sleep(5)
    machine.tell(StopAsked("SIGTERM"))
    machine.hangs_since[0] = machine.now - 31
    machine.sleep(2)
    assert machine.killed == [0]
