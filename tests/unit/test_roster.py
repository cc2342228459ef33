"""The roster, one story at a time: which workers run, which are replaced, and what is reported."""

from __future__ import annotations

import pytest
from helpers.rosters import Machine

from prefork.core.facts import (
    ExitCause,
    Finish,
    HandedOver,
    OldWorkerTooLarge,
    RecycleRequested,
    ReloadRequested,
    Started,
    StopRequested,
    SuccessorRolledBack,
    TimePassed,
    WorkerDied,
    WorkerReady,
    WorkerStoppedAccepting,
    WorkerUnable,
)
from prefork.core.lame_duck import DrainDelay
from prefork.core.states import ServerPhase, Timing, Worker, WorkerState
from prefork.errors import ExitCode


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


def test_a_crash_loop_ends_the_server_only_when_no_worker_serves() -> None:
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


def test_a_failed_fork_is_logged_once_and_retried() -> None:
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


def test_a_worker_that_crashes_while_it_drains_is_logged() -> None:
    machine = Machine(3)
    machine.tell(Started())
    machine.tell(WorkerReady(0))
    machine.tell(WorkerReady(1))
    machine.tell(StopRequested("SIGTERM"))
    machine.tell(WorkerDied(0, "exit status 0", clean=True))
    machine.tell(WorkerDied(1, "signal 11 (SIGSEGV)"))
    machine.tell(WorkerDied(1, "signal 11 (SIGSEGV)"))
    machine.alive.clear()
    machine.tell(WorkerDied(2, "signal 15 (SIGTERM)"))
    died = [note for note in machine.notes if "died" in note]
    assert died == ["worker 1 (pid 5001) died: signal 11 (SIGSEGV)"]
    assert machine.finish == Finish(ExitCode.OK)


def test_a_second_signal_does_not_drain() -> None:
    machine = Machine(2)
    machine.boot()
    machine.tell(StopRequested("SIGTERM", signal=True))
    assert (sorted(machine.drained), machine.killed) == ([0, 1], [])
    machine.die(0, "exit status 0")
    machine.tell(StopRequested("SIGINT", signal=True))
    assert machine.killed == [1]
    machine.tell(StopRequested("SIGINT", signal=True))
    machine.die(1, "signal 9 (SIGKILL)")
    assert machine.finish == Finish(ExitCode.OK)


def test_a_second_request_to_stop_changes_nothing_unless_it_is_at_once() -> None:
    machine = Machine(1)
    machine.boot()
    machine.tell(StopRequested("SIGTERM", signal=True))
    until = dict(machine.until)
    machine.sleep(5)
    machine.tell(StopRequested("control socket"))
    machine.tell(StopRequested("control socket"))
    assert (machine.until, machine.killed) == (until, [])
    assert [note for note in machine.notes if "stopping" in note] == ["stopping (SIGTERM): draining open connections"]
    machine.tell(StopRequested("control socket", at_once=True))
    assert machine.killed == [0]


# --- how long old workers drain ---------------------------------------------------------------------------------------


def reload(machine: Machine, **timing: float) -> None:
    """Reload a machine of one slot, whose old worker goes on draining."""
    machine.tell(ReloadRequested("SIGHUP", Timing(**timing)))
    machine.tell(WorkerReady(newest(machine)))


def test_a_lame_duck_serves_on_then_drains() -> None:
    machine = Machine(2, drain_delay=DrainDelay(5.0))
    machine.boot()
    machine.tell(StopRequested("SIGTERM", signal=True))
    assert machine.roster.phase is ServerPhase.LAME_DUCK
    assert machine.notes[-1].startswith("lame duck (SIGTERM): new connections are accepted for 5 s more")
    machine.die(0, "signal 9 (SIGKILL)")
    machine.tell(WorkerReady(max(machine.alive)))
    assert sorted(machine.alive.values()) == [0, 1], "a dead worker is replaced"
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.scale(1)
    assert len(machine.alive) == 2
    reasons = [note for note in machine.notes if note.startswith("not ")]
    assert len(reasons) == 2
    assert all("lame duck" in reason for reason in reasons)
    machine.tell(StopRequested("control socket"))
    machine.sleep(4.9)
    assert machine.drained == []
    machine.sleep(0.2)
    assert sorted(machine.drained) == sorted(machine.alive)
    assert machine.ends
    assert machine.notes[-1] == "stopping (SIGTERM): draining open connections"


def test_a_second_signal_ends_a_lame_duck_at_once() -> None:
    machine = Machine(2, drain_delay=DrainDelay(60.0))
    machine.boot()
    machine.tell(StopRequested("SIGTERM", signal=True))
    machine.tell(StopRequested("SIGTERM", signal=True))
    assert sorted(machine.killed) == [0, 1]
    assert machine.notes[-1] == "stopping at once (SIGTERM)"


@pytest.mark.parametrize("stage", ["booting", "left"])
def test_there_is_no_lame_duck_before_ready_and_after_a_hand_over(stage: str) -> None:
    machine = Machine(2, drain_delay=DrainDelay(60.0))
    machine.tell(Started())
    machine.tell(WorkerReady(0))
    if stage == "left":
        machine.tell(WorkerReady(1))
        machine.tell(HandedOver())
    machine.tell(StopRequested("SIGTERM", signal=True))
    assert machine.roster.phase is ServerPhase.STOPPING
    assert sorted(machine.drained) == [0, 1]


def test_a_reload_that_is_under_way_ends_in_a_lame_duck() -> None:
    machine = Machine(2, drain_delay=DrainDelay(60.0))
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.tell(StopRequested("SIGTERM", signal=True))
    machine.tell(WorkerReady(2))
    machine.tell(WorkerReady(3))
    assert machine.served == [(1, 0)]
    assert sorted(machine.drained) == [0, 1]
    assert machine.roster.phase is ServerPhase.LAME_DUCK


def test_an_old_worker_drains_without_limit_until_the_server_stops() -> None:
    machine = Machine(1)
    machine.boot()
    reload(machine)
    machine.sleep(10_000)
    assert (machine.until, machine.killed) == ({0: None}, [])
    machine.tell(StopRequested("SIGTERM", signal=True))
    assert machine.until == {0: machine.now + 30, 1: machine.now + 30}
    machine.sleep(50)
    assert sorted(machine.killed) == [0, 1]


def test_an_old_worker_has_the_drain_timeout_of_reloads_and_no_longer_at_a_stop() -> None:
    machine = Machine(1, reload_drain=100)
    machine.boot()
    reload(machine)
    began = machine.now
    assert machine.until == {0: began + 100}
    machine.sleep(90)
    machine.tell(StopRequested("SIGTERM"))
    assert machine.until[0] == began + 100, "it had less than 30 s left"


def test_of_three_old_workers_of_a_slot_the_oldest_has_to_hurry() -> None:
    machine = Machine(1)
    machine.boot()
    for _ in range(3):
        assert machine.hurried == []
        reload(machine)
    assert machine.until == {0: machine.now + 30, 1: None, 2: None}
    assert machine.hurried == [(0, "so do two newer ones of its slot")]
    machine.die(0, "exit status 0", clean=True)
    machine.sleep(100)
    reload(machine)
    assert [worker for worker, _ in machine.hurried] == [0, 1]


def test_an_old_worker_that_is_too_large_has_to_hurry_once() -> None:
    machine = Machine(1)
    machine.boot()
    reload(machine)
    for _ in range(2):
        machine.tell(OldWorkerTooLarge(0, 300, 200))
        machine.sleep(1)
    assert machine.hurried == [(0, "uses 300 bytes, beyond twice --max-worker-rss")]
    machine.tell(OldWorkerTooLarge(1, 300, 200))
    machine.tell(OldWorkerTooLarge(99, 300, 200))
    assert machine.until == {0: machine.now - 2 + 30}, "one that serves is recycled"


def test_a_worker_that_is_no_longer_wanted_while_it_starts_ends_within_the_drain_timeout() -> None:
    """It has no connections, and may hang."""
    machine = Machine(2)
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.tell(WorkerReady(newest(machine)))
    machine.scale(-1)
    assert machine.until == {0: None, 3: machine.now + 30, 1: None}
    machine.sleep(50)
    assert machine.killed == [3]


def test_after_a_hand_over_a_stop_is_not_that_of_the_service() -> None:
    """A service manager would take it for that, and end the successor."""
    machine = Machine(1)
    machine.boot()
    machine.tell(HandedOver())
    assert not machine.roster.has_live_workers(), "what drains here says nothing about the service"
    machine.sleep(1000)
    machine.tell(StopRequested("its successor"))
    assert machine.until == {0: machine.now + 30}
    machine.tell(StopRequested("SIGQUIT", at_once=True))
    assert machine.notes[-2:] == [
        "the old workers end within --drain-timeout (its successor)",
        "the old workers end at once (SIGQUIT)",
    ]


def test_a_server_that_gives_up_does_not_wait_for_old_workers_without_end() -> None:
    machine = Machine(1)
    machine.boot()
    reload(machine)
    while machine.roster.phase is ServerPhase.SERVING:
        machine.die(newest(machine))
        machine.sleep((machine.roster.slots[0].due or machine.now) - machine.now)
    assert machine.until == {0: machine.now + 30}


# --- reload and scale -------------------------------------------------------------------------------------------------


def newest(machine: Machine) -> int:
    return max(machine.alive)


def test_a_reload_replaces_one_slot_at_a_time_each_successor_ready_first() -> None:
    machine = Machine(3)
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    for slot in range(3):
        assert len(machine.alive) == 4
        assert machine.drained == list(range(slot)), "none drains before its successor is ready"
        assert machine.alive[newest(machine)] == slot
        machine.tell(WorkerReady(newest(machine)))
        assert machine.drained == list(range(slot + 1))
        machine.die(slot, "exit status 0")
    assert sorted(machine.alive.values()) == [0, 1, 2]
    assert "reloaded: every worker is of generation 1" in machine.notes
    assert {worker.generation for worker in machine.roster.workers.values()} == {1}
    assert not machine.killed


def test_a_reload_is_done_when_no_old_worker_accepts() -> None:
    machine = Machine(2)
    machine.obedient = False
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.tell(WorkerReady(2))
    machine.tell(WorkerReady(3))
    assert machine.drained == [0, 1]
    machine.tell(WorkerStoppedAccepting(0))
    assert "reloaded: every worker is of generation 1" not in machine.notes
    machine.die(1, "signal 9 (SIGKILL)")
    assert "reloaded: every worker is of generation 1" in machine.notes
    assert machine.served == [(1, 0)]
    assert machine.roster.rolling is None
    gone = "every worker before generation 1 has exited"
    assert gone not in machine.notes, "one of them drains"
    machine.die(0, "exit status 0", clean=True)
    assert machine.notes[-1] == gone
    machine.sleep(100)
    assert machine.notes.count(gone) == 1


def test_code_that_does_not_boot_never_replaces_a_running_worker() -> None:
    machine = Machine(3)
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.tell(WorkerReady(newest(machine)))
    bad = newest(machine)
    machine.tell(WorkerUnable(bad, "service x:y: SyntaxError"))
    machine.die(bad, "exit status 3")
    assert machine.drained == [0]
    assert machine.roster.rolling is None
    assert (machine.begun, machine.served, machine.failed) == (1, [], 1)
    assert any("reload failed" in note and "SyntaxError" in note for note in machine.notes)
    machine.sleep(100)
    assert sorted(machine.alive) == [0, 1, 2, 3]


def test_a_successor_that_is_not_ready_in_time_is_killed_and_the_reload_is_off() -> None:
    machine = Machine(1)
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.sleep(61)
    assert machine.killed == [1]
    machine.die(1, "signal 9 (SIGKILL)")
    assert any("not ready after 60 s" in note for note in machine.notes)
    assert list(machine.alive) == [0]


def test_a_predecessor_that_dies_meanwhile_leaves_its_slot_to_the_successor() -> None:
    machine = Machine(1)
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.die(0)
    machine.sleep(100 - 50)
    assert list(machine.alive) == [1], "no third one"
    machine.tell(WorkerReady(1))
    assert machine.drained == []
    assert machine.roster.rolling is None


def test_when_both_die_the_slot_is_filled_again() -> None:
    machine = Machine(1)
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.die(0)
    machine.die(1)
    machine.sleep(1)
    assert list(machine.alive) == [2]


def test_two_requests_are_two_reloads_one_after_the_other() -> None:
    machine = Machine(2)
    machine.boot()
    for _ in range(3):
        machine.tell(ReloadRequested("SIGHUP", Timing()))
    assert machine.roster.generations() == {0, 1, 2}, "the queued one is needed, too"
    for _ in range(4):
        machine.tell(WorkerReady(newest(machine)))
    assert machine.roster.generation == 2
    assert machine.roster.rolling is None
    assert machine.drained == [0, 1, 2, 3]


def test_a_reload_takes_the_place_of_one_whose_worker_does_not_become_ready() -> None:
    machine = Machine(2)
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.tell(WorkerReady(newest(machine)))
    stuck = newest(machine)
    machine.sleep(4)
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    assert (newest(machine), machine.roster.generation) == (stuck, 1), "it may still become ready"
    machine.sleep(2)
    assert stuck in machine.drained
    assert machine.until[stuck] == machine.now - 1 + 30, "it has no connections, and may hang"
    assert f"worker 1 (pid {5000 + stuck}) is not ready after 5 s: called off by the next reload" in machine.notes
    assert (machine.roster.generation, machine.failed) == (2, 1)
    machine.tell(WorkerReady(newest(machine)))
    machine.tell(WorkerReady(newest(machine)))
    assert machine.served == [(2, 0)]
    machine.die(stuck, "signal 61 (SIGRTMAX-3)")
    assert not machine.roster.deaths


def test_a_reload_takes_the_place_of_a_stuck_one_at_once() -> None:
    machine = Machine(1)
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.sleep(20)
    assert machine.roster.is_stuck(machine.now)
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    assert (machine.drained, machine.roster.generation) == ([1], 2)
    assert not machine.roster.is_stuck(machine.now)


def test_recycling_that_is_stuck_keeps_no_reload_waiting() -> None:
    machine = Machine(1)
    machine.boot()
    machine.tell(RecycleRequested(0, "it is old"))
    assert newest(machine) == 1
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.sleep(6)
    assert (machine.drained, machine.roster.generation, machine.failed) == ([1], 1, 0)
    machine.tell(WorkerReady(newest(machine)))
    assert machine.served == [(1, 0)]


def test_a_stop_ends_a_reload() -> None:
    machine = Machine(2)
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.tell(StopRequested("SIGTERM"))
    assert sorted(machine.drained) == [0, 1, 2]
    for worker in list(machine.alive):
        machine.die(worker, "exit status 0")
    assert machine.finish == Finish(ExitCode.OK)


def crash_into_back_off(machine: Machine, slot: int) -> None:
    """Kill the slot's workers until it has to wait for the next one."""
    for _ in range(10):
        if machine.roster.slots[slot].occupant is None:
            break
        machine.die(machine.roster.slots[slot].occupant)
    assert machine.roster.slots[slot].due is not None
    assert machine.roster.slots[slot].due > machine.now


def test_the_successor_of_an_empty_slot_must_also_boot_first() -> None:
    """A failed reload leaves the slot to a worker of the old generation, forked when it was due."""
    machine = Machine(2)
    machine.boot()
    crash_into_back_off(machine, 0)
    due = machine.roster.slots[0].due
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    successor = newest(machine)
    assert machine.alive[successor] == 0
    machine.tell(WorkerUnable(successor, "wrong settings"))
    machine.die(successor, "exit status 3")
    assert machine.notes[-1].endswith("the successor of worker 0 did not boot: wrong settings")
    assert machine.roster.slots[0].due == due
    machine.sleep(20)
    assert machine.roster.workers[newest(machine)].generation == 0
    assert machine.roster.generations() == {0}


def test_slots_added_during_a_reload_run_the_new_generation() -> None:
    machine = Machine(1)
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.scale(1)
    assert sorted(machine.alive.values()) == [0, 0], "one successor at a time"
    machine.tell(WorkerReady(newest(machine)))
    machine.die(0, "exit status 0", clean=True)
    assert sorted(machine.alive.values()) == [0, 1]
    assert machine.roster.rolling is not None
    machine.tell(WorkerReady(newest(machine)))
    assert machine.roster.rolling is None
    assert {worker.generation for worker in machine.roster.workers.values()} == {1}


def test_removing_a_slot_removes_its_successor() -> None:
    machine = Machine(2)
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.tell(WorkerReady(newest(machine)))
    successor = newest(machine)
    assert machine.alive[successor] == 1
    machine.scale(-1)
    assert successor in machine.drained
    assert machine.roster.rolling is None
    assert "reloaded: every worker is of generation 1" in machine.notes


def test_requests_are_refused_until_the_first_workers_are_ready() -> None:
    machine = Machine(1)
    machine.tell(Started())
    machine.scale(2)
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    assert len(machine.alive) == 1
    assert [note.split(":")[0] for note in machine.notes] == ["not scaling (SIGTTIN)", "not reloading (SIGHUP)"]


def test_giving_up_does_not_kill_draining_workers() -> None:
    machine = Machine(1)
    machine.boot()
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    machine.tell(WorkerReady(newest(machine)))
    assert machine.drained == [0]
    while machine.roster.phase is ServerPhase.SERVING:
        machine.die(newest(machine))
        machine.sleep((machine.roster.slots[0].due or machine.now) - machine.now)
    assert 0 not in machine.killed
    assert machine.finish is None
    machine.die(0, "exit status 0", clean=True)
    assert machine.finish is not None
    assert machine.finish.code == ExitCode.CRASH_LOOP


def test_slots_are_added_and_removed_one_at_a_time() -> None:
    machine = Machine(1)
    machine.boot()
    machine.scale(1)
    assert sorted(machine.alive.values()) == [0, 1]
    machine.tell(WorkerReady(1))
    machine.scale(-1)
    assert machine.drained == [1]
    machine.die(1, "exit status 0")
    machine.scale(-1)
    assert sorted(machine.alive) == [0], "the last one stays"
    machine.sleep(100)
    assert sorted(machine.alive) == [0]
    assert all(worker.state is WorkerState.READY for worker in machine.roster.workers.values())


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
    machine.die(0, "signal 9 (SIGKILL)", connections=12)
    assert sorted(machine.alive.values()) == [0, 1]
    assert any("worker 0 (pid 5000) hangs" in note for note in machine.notes)
    assert machine.notes[-1] == (
        "worker 0 (pid 5000) died: signal 9 (killed by --hang-timeout), 12 connections with it, restarting"
    )


def test_one_pause_of_the_whole_server_kills_no_worker() -> None:
    """The machine slept, or the cgroup was frozen: the clock went on, and no worker could beat."""
    machine = Machine(2)
    machine.boot()
    machine.sleep(20)
    machine.hangs_since = {0: machine.now, 1: machine.now}
    machine.now += 3600
    machine.tell(TimePassed())
    assert machine.dumped == []
    # The workers wake a moment after the supervisor, and beat before its next check.
    machine.hangs_since.clear()
    machine.sleep(100)
    assert machine.dumped == []


def test_repeated_pauses_kill_no_worker_that_beats_in_between() -> None:
    """A laptop's lid, or a cgroup that is frozen again and again: each check is late, and finds every worker stale."""
    machine = Machine(2)
    machine.boot()
    machine.sleep(20)
    for _ in range(20):
        machine.hangs_since = {0: machine.now, 1: machine.now}
        machine.now += 40
        machine.tell(TimePassed())
        machine.hangs_since.clear()
        machine.sleep(0.3)
    assert machine.dumped == []


def test_repeated_pauses_do_not_hide_a_worker_that_never_beats() -> None:
    machine = Machine(2)
    machine.boot()
    machine.sleep(20)
    machine.hangs_since = {0: machine.now}
    for _ in range(4):
        assert machine.dumped == []
        machine.now += 40
        machine.tell(TimePassed())
    assert machine.dumped == [0]


def test_slots_removed_during_a_reload_get_no_worker() -> None:
    machine = Machine(4)

    def all_ready() -> None:
        for number in [each for each in machine.alive if machine.roster.workers[each].state is WorkerState.STARTING]:
            machine.tell(WorkerReady(number))

    machine.boot()
    machine.scale(2)
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    for _ in range(2):
        all_ready()
    for more in (-3, 2):
        machine.scale(more)
        machine.check()
    for _ in range(2):
        all_ready()
    made = machine.spawned
    machine.scale(-3)
    machine.check()
    assert machine.spawned == made, "for a slot that goes in the same moment"
    for _ in range(5):
        all_ready()
        machine.check()


def test_a_worker_that_hangs_while_it_drains_is_killed() -> None:
    machine = Machine(1)
    machine.boot()
    machine.sleep(5)
    machine.tell(StopRequested("SIGTERM"))
    machine.hangs_since[0] = machine.now - 31
    machine.sleep(2)
    assert machine.killed == [0]


# --- recycling --------------------------------------------------------------------------------------------------------


def test_recycled_workers_are_replaced_one_at_a_time_successor_first() -> None:
    machine = Machine(3)
    machine.boot()
    for worker in range(3):
        machine.tell(RecycleRequested(worker, "1000 connections served"))
    for slot in range(3):
        assert len(machine.alive) == 4
        assert machine.drained == list(range(slot))
        machine.tell(WorkerReady(newest(machine)))
        machine.die(slot, "exit status 0", clean=True)
        assert len(machine.alive) == 3, "not all at once, however low the limits are"
        machine.sleep(1.1)
    assert sorted(machine.alive) == [3, 4, 5]
    assert {worker.generation for worker in machine.roster.workers.values()} == {0}
    assert "recycling worker 0 (pid 5000): 1000 connections served" in machine.notes
    assert not machine.roster.deaths


def test_a_slot_recycled_again_and_again_does_not_starve_the_others() -> None:
    machine = Machine(2)
    machine.boot()
    machine.tell(RecycleRequested(0, "served"))
    machine.tell(WorkerReady(2))
    machine.tell(RecycleRequested(1, "served"))
    machine.sleep(0.1)
    machine.tell(RecycleRequested(2, "served already"))
    machine.sleep(1.1)
    assert machine.alive[newest(machine)] == 1


def test_a_worker_whose_successor_fails_serves_on_and_is_recycled_later() -> None:
    machine = Machine(1)
    machine.boot()
    machine.tell(RecycleRequested(0, "old"))
    machine.die(1, "exit status 1")
    assert machine.drained == []
    assert machine.notes[-1].startswith("worker 0 stays, its successor did not boot")
    machine.sleep(29)
    assert sorted(machine.alive) == [0]
    machine.sleep(2)
    assert sorted(machine.alive) == [0, 2]


def test_a_reload_requested_during_recycling_comes_next() -> None:
    machine = Machine(2)
    machine.boot()
    machine.tell(RecycleRequested(0, "old"))
    machine.tell(ReloadRequested("SIGHUP", Timing()))
    for _ in range(3):
        machine.tell(WorkerReady(newest(machine)))
    assert machine.roster.generation == 1
    assert machine.roster.rolling is None
    assert {w.generation for w in machine.roster.workers.values() if w.state is WorkerState.READY} == {1}


# --- another supervisor -----------------------------------------------------------------------------------------------


def test_after_a_hand_over_all_workers_drain_and_none_is_forked() -> None:
    machine = Machine(2)
    machine.boot()
    machine.tell(HandedOver())
    assert machine.drained == [0, 1]
    machine.die(0, "signal 9 (SIGKILL)")
    machine.sleep(5)
    assert sorted(machine.alive) == [1]
    machine.die(1, "exit status 0", clean=True)
    assert machine.finish == Finish(ExitCode.OK)


def test_a_server_that_gave_up_has_not_failed_if_its_successor_serves() -> None:
    for late in (False, True):
        machine = Machine(2)
        machine.tell(Started())
        machine.die(1)
        assert machine.roster.phase is ServerPhase.STOPPING
        if late:
            machine.die(0)
            assert machine.finish is not None
            assert machine.finish.code is ExitCode.SERVICE
        machine.tell(HandedOver())
        if not late:
            machine.die(0)
        assert machine.finish == Finish(ExitCode.OK)


def test_a_worker_cannot_go_back() -> None:
    worker = Worker(0, 0, 0, Timing(), WorkerState.DRAINING, pid=5000)
    with pytest.raises(RuntimeError, match=r"worker 0 \(pid 5000\) cannot go from DRAINING to READY"):
        worker.become(WorkerState.READY)


def test_after_a_roll_back_every_slot_gets_a_worker_and_drains_go_on() -> None:
    machine = Machine(2)
    machine.boot()
    machine.tell(HandedOver())
    machine.tell(SuccessorRolledBack())
    assert sorted(machine.alive.values()) == [0, 0, 1, 1]
    machine.die(0, "exit status 0", clean=True)
    machine.die(1, "exit status 0", clean=True)
    for worker in list(machine.alive):
        machine.tell(WorkerReady(worker))
    machine.sleep(100)
    assert sorted(machine.alive) == [2, 3]
    assert machine.roster.phase is ServerPhase.SERVING


# --- causes -----------------------------------------------------------------------------------------------------------


def test_deaths_are_counted_by_cause() -> None:
    machine = Machine(1)
    machine.boot()

    def die(kind: ExitCause) -> None:
        worker = newest(machine)
        del machine.alive[worker]
        machine.tell(WorkerDied(worker, "somehow", False, kind))
        machine.sleep(40)

    def ready() -> None:
        machine.tell(WorkerReady(newest(machine)))
        machine.sleep(20)

    die(ExitCause.SIGNAL)
    die(ExitCause.EXIT)  # it was not ready
    ready()
    die(ExitCause.EXIT)
    ready()
    die(ExitCause.MEMORY)
    ready()
    machine.hangs_since[newest(machine)] = machine.now - 31
    machine.sleep(3)
    die(ExitCause.SIGNAL)
    machine.sleep(30)  # it is not ready in time
    die(ExitCause.SIGNAL)
    assert machine.roster.deaths == {
        ExitCause.SIGNAL: 1, ExitCause.EXIT: 1, ExitCause.MEMORY: 1, ExitCause.HANG: 1, ExitCause.BOOT: 2,
    }  # fmt: skip
