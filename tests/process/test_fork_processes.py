"""fork_processes: every clause of its promise, with real processes."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from helpers.forked import ONE_WRITE, running
from helpers.support import need, need_root, run_script, wait_until
from tornado import process

from prefork import fork_processes, task_id

#: Children that print their id and pid, then wait to be told to end.
WAITING = """
import os, signal, sys, time
import prefork
task = prefork.fork_processes(3)
print(task, os.getpid(), flush=True)
while True:
    time.sleep(0.01)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_script(code, *arguments, env=ONE_WRITE)


def test_it_returns_in_each_child_with_an_id_of_its_own() -> None:
    result = run(
        """
        import os, prefork
        assert prefork.task_id() is None
        task = prefork.fork_processes(4)
        print(task, prefork.task_id(), os.getpid(), os.getppid())
        """
    )
    assert result.returncode == 0, result.stderr
    lines = sorted(line.split() for line in result.stdout.splitlines())
    assert [line[0] for line in lines] == [line[1] for line in lines] == ["0", "1", "2", "3"]
    assert len({line[2] for line in lines}) == 4
    assert len({line[3] for line in lines}) == 1
    assert result.stderr == "", "nothing to warn of"


@pytest.mark.parametrize("number", ["None", "0", "-1"])
def test_no_number_means_one_per_usable_cpu(number: str) -> None:
    code = f"""
        import prefork
        count = prefork.cpu_count()
        prefork.fork_processes({number})
        print(count)
        """
    result = run(code)
    counts = result.stdout.split()
    assert result.returncode == 0, result.stderr
    assert counts == [str(len(counts))] * len(counts)
    pinned = run("import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + code.replace("        ", ""))
    assert pinned.stdout.split() == ["1"], pinned.stderr


def test_a_child_that_fails_is_restarted_with_its_id_and_a_warning_that_names_the_status(tmp_path: Path) -> None:
    result = run(
        """
        import os, sys, prefork
        attempts = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_APPEND)
        task = prefork.fork_processes(2)
        os.write(attempts, f"{task} {os.getpid()}\\n".encode())
        tries = open(sys.argv[1]).read().split("\\n")
        if task == 1 and sum(line.startswith("1 ") for line in tries) < 3:
            sys.exit(3)
        """,
        str(tmp_path / "started"),
    )
    started = [line.split() for line in (tmp_path / "started").read_text().splitlines()]
    assert result.returncode == 0, result.stderr
    assert sorted(task for task, _ in started) == ["0", "1", "1", "1"]
    pids = [pid for task, pid in started if task == "1"]
    # With no logging configured, a warning still reaches standard error.
    assert result.stderr.splitlines() == [f"child 1 (pid {pid}) exited with status 3, restarting" for pid in pids[:2]]


def test_a_child_that_is_killed_is_restarted_with_its_id_and_a_warning_that_names_the_signal() -> None:
    with running(WAITING) as script:
        first = {task: int(pid) for task, pid in script.lines(3)}
        os.kill(first["2"], signal.SIGKILL)
        again = script.lines(4)[3]
        os.kill(int(again[1]), signal.SIGSEGV)
        third = script.lines(5)[4]
        assert again[0] == third[0] == "2"
        assert sorted(script.others()) == sorted([first["0"], first["1"], int(third[1])])
        one, two = script.err.splitlines()[0], script.err.splitlines()[-1]
        assert one == f"child 2 (pid {first['2']}) killed by signal 9, restarting"
        assert re.fullmatch(rf"child 2 \(pid {again[1]}\) killed by signal 11( \(core dumped\))?, restarting", two)


def test_the_warning_goes_to_the_logger_of_the_package(tmp_path: Path) -> None:
    result = run(
        """
        import logging, os, sys, prefork
        logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
        if prefork.fork_processes(1, max_restarts=1) == 0 and not os.path.exists(sys.argv[1]):
            open(sys.argv[1], "w").close()
            sys.exit(5)
        """,
        str(tmp_path / "failed"),
    )
    assert result.returncode == 0, result.stderr
    first, second = result.stderr.splitlines()
    assert re.fullmatch(r"prefork WARNING child 0 \(pid \d+\) exited with status 5, restarting", first)
    assert re.fullmatch(r"prefork INFO child 0 \(pid \d+\) exited normally", second)


def test_exit_0_is_not_restarted_and_the_last_one_ends_the_parent_with_0() -> None:
    code = """
        import os, signal, sys, time, prefork
        try:
            task = prefork.fork_processes(3)
        except SystemExit as exc:
            print("parent", exc.code, os.getpid(), flush=True)
            raise
        print("child", task, os.getpid(), flush=True)
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))
        print("ready", task, os.getpid(), flush=True)
        while True:
            time.sleep(0.01)
        """
    with running(code) as script:
        pids = [int(pid) for what, _, pid in script.lines(6) if what == "ready"]
        for left, pid in zip((2, 1), pids, strict=False):
            os.kill(pid, signal.SIGUSR1)
            wait_until(lambda left=left: len(script.others()) == left, what="one fewer")
        assert script.process.poll() is None, "the parent stays for the last one"
        os.kill(pids[2], signal.SIGUSR1)
        assert script.end() == 0
        assert script.out.splitlines()[-1] == f"parent 0 {script.pid}"
        assert script.out.count("ready") == 3
        assert script.err == ""


def test_too_many_restarts_end_in_the_error_with_no_child_left() -> None:
    with running(
        """
        import os, signal, sys, time, prefork, prefork.parent.fork_processes
        prefork.parent.fork_processes.STOP_TIMEOUT = 0.3
        started = time.monotonic()
        try:
            task = prefork.fork_processes(4, max_restarts=5)
        except RuntimeError as exc:
            try:
                os.waitpid(-1, os.WNOHANG)
                print("children are left", flush=True)
            except ChildProcessError:
                print("parent", exc, flush=True)
            raise
        if task == 3:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("child", task, flush=True)
        if task == 0:
            sys.exit(1)
        while True:
            time.sleep(0.01)
        """
    ) as script:
        assert script.end() == 1
        assert script.others() == []
        assert script.out.count("child 0") == 6, "the first and five restarts"
        assert script.out.splitlines()[-1] == "parent Too many child restarts, giving up"
        assert "RuntimeError: Too many child restarts, giving up" in script.err
        assert script.err.count(", restarting") == 5
        assert script.err.count("not restarting: the limit is reached (max_restarts)") == 1


def test_no_restart_at_all_may_be_asked_for() -> None:
    result = run("import sys, prefork\nprefork.fork_processes(1, 0)\nprint('child')\nsys.exit(9)")
    assert result.stdout == "child\n"
    assert "Too many child restarts, giving up" in result.stderr
    assert "exited with status 9" in result.stderr


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_is_passed_on_and_the_parent_leaves_after_its_children(sig: signal.Signals) -> None:
    code = """
        import os, signal, sys, time, prefork
        task = prefork.fork_processes(3)
        def leave(signum, frame):
            print("heard", task, signum, flush=True)
            signal.sigwait({signal.SIGUSR1})
            sys.exit(0)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        if task < 2:
            signal.signal(int(sys.argv[1]), leave)
        else:
            signal.signal(int(sys.argv[1]), signal.SIG_DFL)
        print("ready", task, os.getpid(), flush=True)
        while True:
            time.sleep(0.01)
        """
    with running(code, str(int(sig))) as script:
        pids = {task: int(pid) for _, task, pid in script.lines(3)}
        script.signal(sig)
        assert sorted(script.lines(5)[3:]) == [["heard", task, str(int(sig))] for task in "01"]
        wait_until(lambda: pids["2"] not in script.others(), what="the one that dies of it")
        assert script.process.poll() is None, "the parent waits"
        for task in "01":
            os.kill(pids[task], signal.SIGUSR1)
        assert script.end() == 0
        assert script.err == "", "neither an error nor a restart"
        assert script.out.count("ready") == 3


def test_control_c_reaches_each_child_once() -> None:
    """A terminal tells the whole process group: passed on once more, asyncio would drop what it is finishing."""
    code = """
        import signal, sys, time, prefork
        task = prefork.fork_processes(3)
        heard = []
        def interrupted(*_):
            heard.append(1)
            print("interrupted", flush=True)
        signal.signal(signal.SIGINT, interrupted)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0 if len(heard) == 1 else 9))
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
        """
    ours, theirs = os.openpty()
    try:
        with running(code, terminal=theirs) as script:
            script.lines(3)
            script.signal(signal.SIGSTOP)  # until the children have heard: two signals at once would become one
            os.write(ours, b"\x03")
            script.lines(6)
            script.signal(signal.SIGTERM)
            script.signal(signal.SIGCONT)
            assert script.end() == 0, script.err
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_child_that_fails_while_stopping_is_told_and_not_restarted() -> None:
    code = """
        import os, signal, sys, time, prefork
        task = prefork.fork_processes(2)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(4 if task == 1 else 0))
        print(task, os.getpid(), flush=True)
        while True:
            time.sleep(0.01)
        """
    with running(code) as script:
        pids = dict(script.lines(2))
        script.signal(signal.SIGTERM)
        assert script.end() == 1
        assert script.err == (
            f"child 1 (pid {pids['1']}) exited with status 4, not restarting: the parent is stopping\n"
        )


def test_a_signal_reaches_children_that_are_only_just_being_started() -> None:
    """SIGTERM to the parent at a random moment from its first fork on: no child misses it, none is left."""
    code = """
        import os, random, signal, sys, time, prefork
        if os.fork() == 0:
            time.sleep(random.random() * float(sys.argv[1]))
            os.kill(os.getppid(), signal.SIGTERM)
            os._exit(0)
        prefork.fork_processes(6)
        while True:
            time.sleep(0.01)
        """
    for round in range(20):
        with running(code, str(0.002 + 0.001 * round)) as script:
            # Before the call the signal kills the script, as it does any other; then there are no children.
            assert script.end() in (0, -signal.SIGTERM)
            wait_until(lambda: not script.others(), what="children are left")
            assert script.err == ""


def test_children_die_with_a_parent_that_is_killed() -> None:
    """Whatever they block or ignore, and also when they have dropped root."""
    need_root()
    code = """
        import os, signal, time, prefork
        task = prefork.fork_processes(4)
        if task % 2:
            os.setgid(65534)
            os.setuid(65534)
        if task >= 2:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        print(task, os.getpid(), flush=True)
        while True:
            signal.sigwait({signal.SIGUSR1})
        """
    with running(code) as script:
        script.lines(4)
        assert len(script.others()) == 4
        script.signal(signal.SIGKILL)
        assert script.end() == -signal.SIGKILL
        wait_until(lambda: not script.others(), 5, "orphans are left")


@pytest.mark.slow
def test_children_die_with_a_parent_that_is_killed_while_it_forks() -> None:
    code = """
        import os, sys, random, time, prefork
        real = os.fork
        kill_at = random.randrange(12)
        def fork():
            pid = real()
            global kill_at
            kill_at -= 1
            if pid and kill_at < 0:
                if random.random() < 0.5:
                    time.sleep(random.random() * 0.001)
                os.kill(os.getpid(), 9)
            return pid
        os.fork = fork
        prefork.fork_processes(12)
        time.sleep(60)
        """
    for _ in range(15):
        with running(code) as script:
            assert script.end() == -signal.SIGKILL
            wait_until(lambda: not script.others(), 5, "orphans are left")


def test_the_children_of_others_are_neither_reaped_nor_counted() -> None:
    result = run(
        """
        import subprocess, sys, time, prefork
        strangers = [subprocess.Popen(["sh", "-c", f"sleep 0.0{i}; exit {i}"]) for i in range(8)]
        try:
            prefork.fork_processes(2, max_restarts=0)
        except SystemExit:
            print([stranger.wait() for stranger in strangers])
            raise
        time.sleep(0.3)
        """
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[0, 1, 2, 3, 4, 5, 6, 7]\n"


def test_a_fork_that_fails_is_tried_again_while_the_rest_runs() -> None:
    need("strace")
    # The first two forks work, the four after them do not.
    trace = ("strace", "-o", "/dev/null", "-e", "inject=clone,clone3,fork,vfork:error=EAGAIN:when=3..6")
    with running(WAITING, prefix=trace) as script:
        pids = dict(script.lines(3))
        assert sorted(pids) == ["0", "1", "2"]
        assert script.err == ("cannot fork child 2: resource temporarily unavailable; trying again until it works\n"), (
            "one line, not one per attempt"
        )
        parent = int(Path(f"/proc/{pids['0']}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGTERM)
        assert script.end() == 0


def test_a_parent_that_cannot_fork_at_all_can_still_be_stopped() -> None:
    need("strace")
    trace = ("strace", "-D", "-o", "/dev/null", "-e", "inject=clone,clone3,fork,vfork:error=ENOMEM")
    with running(WAITING, prefix=trace) as script:
        wait_until(lambda: "cannot fork child 0" in script.err, what="the warning")
        script.signal(signal.SIGTERM)
        assert script.end() == 0


def test_without_pidfds_children_are_still_supervised() -> None:
    need("strace")
    trace = ("strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=pidfd_open", "-e", "inject=pidfd_open:error=ENOSYS")
    with running(WAITING, prefix=trace) as script:
        pids = dict(script.lines(3))
        os.kill(int(pids["1"]), signal.SIGKILL)
        assert script.lines(4)[3][0] == "1"
        script.signal(signal.SIGTERM)
        assert script.end() == 0
        assert script.err.count("\n") == 1


def test_the_parents_signal_state_is_as_it_was_when_it_comes_back() -> None:
    result = run(
        """
        import os, signal, time, prefork
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        handler = lambda *_: None
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        before = sorted(os.listdir("/proc/self/fd"))
        try:
            prefork.fork_processes(2)
        except SystemExit:
            assert signal.getsignal(signal.SIGTERM) is handler
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.set_wakeup_fd(-1) == writer
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
            assert sorted(os.listdir("/proc/self/fd")) == before
            print("parent")
            raise
        """
    )
    assert result.stdout == "parent\n", result.stderr
    assert result.returncode == 0


def test_a_handler_of_the_parent_that_raises_leaves_no_child() -> None:
    code = """
        import os, signal, time, prefork
        class Enough(Exception): pass
        def enough(*_): raise Enough
        signal.signal(signal.SIGHUP, enough)
        try:
            task = prefork.fork_processes(3)
        except Enough:
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                os._exit(7)
        print(task, os.getpid(), flush=True)
        while True:
            time.sleep(0.01)
        """
    with running(code) as script:
        script.lines(3)
        script.signal(signal.SIGHUP)
        assert script.end() == 7
        assert script.others() == []


def test_what_a_child_raises_stays_in_the_child() -> None:
    """The traceback has only the caller's frames, because the child is not inside the parent's loop."""
    result = run("import prefork\ntask = prefork.fork_processes(1, 0)\nraise LookupError('mine')")
    child, _, parent = result.stderr.partition("exited with status 1")
    assert "LookupError: mine" in child
    assert "fork.py" not in child
    assert "LookupError" not in parent


def test_a_child_cannot_fork_its_own_fleet() -> None:
    result = run(
        """
        import prefork
        prefork.fork_processes(1)
        try:
            prefork.fork_processes(1)
        except RuntimeError as exc:
            print(exc)
        """
    )
    assert result.stdout == "fork_processes: this process is already child 0 of an earlier call\n", result.stderr


def test_the_signature_is_that_of_tornado() -> None:
    assert list(inspect.signature(fork_processes).parameters) == list(
        inspect.signature(process.fork_processes).parameters
    )
    assert inspect.signature(fork_processes).parameters["max_restarts"].default == 100
    assert list(inspect.signature(task_id).parameters) == []
    # The ancestor's own default, spelled out by a caller.
    result = run("import prefork\nprint(prefork.fork_processes(1, max_restarts=None))")
    assert result.stdout == "0\n", result.stderr
