"""Forking, signalling and reaping, with real children, on a kernel with pidfds and on one that refuses them."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from helpers.forked import running
from helpers.support import need, need_root, run_script, wait_until

PRELUDE = """
import errno, os, select, signal, sys, time
from prefork.system.child import ExitStatus
from prefork.system.processes import System
from prefork.system.signals import block_signals, unblock_signals
system = System()
def end(child, deadline=10):
    limit = time.monotonic() + deadline
    while (death := child.reap()) is None:
        assert time.monotonic() < limit, "not ended"
        time.sleep(0.001)
    return death
"""

NO_PIDFD = ("strace", "-f", "-o", "/dev/null", "-e", "trace=pidfd_open", "-e", "inject=pidfd_open:error=ENOSYS")
kernels = pytest.mark.parametrize("prefix", [(), NO_PIDFD], ids=["pidfd", "no-pidfd"])


def script(body: str, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    if prefix:
        need(prefix[0])
    result = run_script(PRELUDE + body, *arguments, prefix=prefix)
    assert result.returncode == 0, result.stderr
    return result


@kernels
def test_a_child_is_polled_signalled_and_reaped(prefix: tuple[str, ...]) -> None:
    script(
        """
child = system.fork()
if child is None:
    unblock_signals()
    time.sleep(60)
assert child.pollable == (sys.argv[1] == "pidfd"), child
assert child.reap() is None
assert child.signal(0)
if child.pollable:
    assert not select.select([child], [], [], 0)[0]
assert child.signal(signal.SIGTERM)
if child.pollable:
    assert select.select([child], [], [], 10)[0], "a pidfd is readable at the end"
death = end(child)
assert death == ExitStatus(None, signal.SIGTERM), death
assert child.reap() == death and child.wait() == death, "asking again gives the same"
assert not child.signal(0), "never signalled after it was reaped"
child.close()
child.close()
child = system.fork()
if child is None:
    system.exit(7)
assert end(child) == ExitStatus(7)
child.close()
for _ in range(50):
    child = system.fork()
    if child is None:
        system.exit(0)
    assert end(child).clean
    child.close()
assert len(os.listdir("/proc/self/fd")) == 4, os.listdir("/proc/self/fd")
""",
        "none" if prefix else "pidfd",
        prefix=prefix,
    )


@kernels
def test_children_of_other_code_are_not_reaped(prefix: tuple[str, ...]) -> None:
    script(
        """
import subprocess
stranger = subprocess.Popen(["sh", "-c", "exit 7"])
child = system.fork()
if child is None:
    system.exit(3)
assert end(child) == ExitStatus(3)
assert stranger.wait() == 7
""",
        prefix=prefix,
    )


def test_a_child_that_other_code_reaped_is_not_signalled() -> None:
    script(
        """
child = system.fork()
if child is None:
    system.exit(3)
os.waitpid(-1, 0)
assert not child.signal(0)
assert end(child) == ExitStatus(None)
"""
    )


def test_an_ignored_sigchld_loses_no_status() -> None:
    script(
        """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
child = system.fork()
if child is None:
    system.exit(3)
assert end(child) == ExitStatus(3)
"""
    )


@pytest.mark.slow
def test_signals_wait_for_a_child_until_it_is_ready_and_none_is_lost() -> None:
    """SIGTERM at random moments of a child's start, in a storm: each child must end by its own handler."""
    script(
        """
import random
def parents(*_): raise AssertionError("the parent's handler ran in a child")
signal.signal(signal.SIGTERM, parents)
for round in range(600):
    child = system.fork()
    if child is None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
        unblock_signals()
        while True:
            time.sleep(0.01)  # not pause(): a signal just before it would be handled after it, that is never
    pause = time.perf_counter() + random.choice((0, 0, random.random() * 0.002))
    while time.perf_counter() < pause:
        pass
    child.signal(signal.SIGTERM)
    death = end(child)
    assert death == ExitStatus(42), (round, death)
    child.close()
"""
    )


@pytest.mark.slow
def test_a_signal_to_the_parent_around_a_fork_runs_its_handler_once_and_never_in_a_child() -> None:
    script(
        """
import random, threading
mine = os.getpid()
count = 0
def handler(*_):
    global count
    if os.getpid() != mine:
        os._exit(99)
    count += 1
signal.signal(signal.SIGUSR1, handler)
signal.signal(signal.SIGPROF, handler)
for round in range(300):
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.00005 + random.random() * 0.001)
    child = system.fork()
    if child is None:
        unblock_signals()
        system.exit(0)
    assert end(child).clean, child
    child.close()
assert count > 0
"""
    )


def test_a_handler_that_raises_at_the_end_of_a_fork_leaves_no_child() -> None:
    script(
        """
def interrupt(*_): raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupt)
real = os.fork
def fork():  # SIGINT comes in the middle of it
    os.kill(os.getpid(), signal.SIGINT)
    return real()
os.fork = fork
try:
    child = system.fork()
    if child is None:
        time.sleep(60)
    raise SystemExit("not interrupted")
except KeyboardInterrupt:
    pass
try:
    os.waitpid(-1, os.WNOHANG)
    raise SystemExit("a child is left")
except ChildProcessError:
    pass
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
assert len(os.listdir("/proc/self/fd")) == 4
"""
    )


def test_a_failed_fork_changes_nothing() -> None:
    need("strace")
    script(
        """
for code in (errno.EAGAIN, errno.ENOMEM):
    try:
        system.fork()
        raise SystemExit("forked")
    except OSError as exc:
        assert exc.errno == errno.EAGAIN, exc
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
assert len(os.listdir("/proc/self/fd")) == 4
""",
        prefix=("strace", "-o", "/dev/null", "-e", "inject=clone,clone3,fork,vfork:error=EAGAIN"),
    )


def test_a_lack_of_descriptors_is_found_before_the_fork() -> None:
    script(
        """
import resource
child = system.fork()  # what is loaded once, is
if child is None:
    system.exit(0)
end(child)
child.close()
held = []
forks = []
os.register_at_fork(before=lambda: forks.append(1))
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
try:
    while True:
        held.append(os.dup(0))
except OSError:
    pass
try:
    system.fork()
    raise SystemExit("forked")
except OSError as exc:
    assert exc.errno == errno.EMFILE, exc
assert not forks
try:
    os.waitpid(-1, os.WNOHANG)
    raise SystemExit("a child is left")
except ChildProcessError:
    pass
os.close(held.pop())
child = system.fork()  # one free descriptor is enough
if child is None:
    system.exit(0)
assert end(child).clean
"""
    )


def test_a_child_starts_as_a_fresh_python_does_and_with_all_signals_blocked() -> None:
    result = script(
        """
import json, subprocess
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored
def status():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {name: int(fields[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")}
fresh = json.loads(subprocess.check_output([sys.executable, "-X", "faulthandler", "-c",
    "import json\\nprint(json.dumps({l.split(':')[0]: int(l.split(':')[1], 16) for l in open('/proc/self/status')"
    " if l[:6] in ('SigBlk', 'SigIgn', 'SigCgt')}))"]))
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
for sig in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM, signal.SIGRTMIN):
    signal.signal(sig, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 3600)
signal.setitimer(signal.ITIMER_PROF, 3600)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
before = status()
out_reader, out_writer = os.pipe()
child = system.fork()
if child is None:
    blocked = status()
    timers = [signal.getitimer(t) for t in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)]
    wakeup = signal.set_wakeup_fd(-1)
    unblock_signals()
    with open(out_writer, "w") as file:
        json.dump([blocked, status(), timers, wakeup], file)
    system.exit(0)
os.close(out_writer)
assert status() == before, "the parent is as it was"
print(json.dumps([fresh, *json.load(open(out_reader))]))
assert end(child).clean
"""
    )
    fresh, blocked, unblocked, timers, wakeup = json.loads(result.stdout)
    # Signals 32 and 33 are the C library's own. posix_spawn, which may have started the other Python, ignores them.
    libc = 0b11 << 31
    assert {name: bits & ~libc for name, bits in unblocked.items()} == {n: bits & ~libc for n, bits in fresh.items()}
    assert unblocked["SigBlk"] == 0
    assert unblocked["SigCgt"] & (1 << signal.SIGINT - 1)
    assert blocked["SigCgt"] == unblocked["SigCgt"]
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT, signal.SIGCHLD):
        assert blocked["SigBlk"] & (1 << sig - 1), sig
    assert not blocked["SigBlk"] & (1 << signal.SIGSEGV - 1)
    assert timers == [[0.0, 0.0]] * 3
    assert wakeup == -1


def test_a_child_holds_no_descriptor_of_its_siblings_or_private_to_its_parent() -> None:
    script(
        """
import selectors
def targets():
    return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{fd}") or os.path.islink(f"/proc/self/fd/{fd}"))
def own():
    return [t for t in targets() if not t.startswith("/proc/")]
before = own()
line = system.lifeline()
selector = selectors.DefaultSelector()
system.close_in_child(selector)
pipe = os.readlink(f"/proc/self/fd/{line.fileno()}")
results = []
children = []
for _ in range(4):
    reader, writer = os.pipe()
    child = system.fork()
    if child is None:
        os.close(reader)
        mine = own()
        mine.remove(os.readlink(f"/proc/self/fd/{writer}"))
        ends = [int(open(f"/proc/self/fdinfo/{fd}").read().split("flags:")[1].split()[0], 8) & os.O_ACCMODE
                for fd in os.listdir("/proc/self/fd")
                if os.path.islink(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}") == pipe]
        os.write(writer, repr((mine == sorted([*before, pipe]), ends, mine)).encode())
        system.exit(0)
    os.close(writer)
    results.append(open(reader, closefd=False).read())
    os.close(reader)
    children.append(child)
for result in results:
    same, ends, mine = eval(result)
    assert same, mine
    assert ends == [os.O_RDONLY], "only the reading end of the lifeline"
"""
    )


def test_buffered_output_is_not_written_twice() -> None:
    result = run_script(
        PRELUDE
        + """
print("once", end=" ")
child = system.fork()
if child is None:
    print("child", end=" ")
    system.exit(0)
end(child)
print("parent")
"""
    )
    assert result.stdout == "once child parent\n"


ORPHANS = """
import ctypes, os, signal, sys, time
from prefork.system.parent_death import die_with_parent
from prefork.system.processes import System
system = System()
line = system.lifeline()
parent = os.getpid()
for way in ("pdeathsig", "armed", "armed+setuid", "watched"):
    if system.fork() is None:
        for sig in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(sig, signal.SIG_IGN)
        if way == "pdeathsig":
            die_with_parent(parent, signal.SIGKILL)
        if way.startswith("armed"):
            assert line.arm(signal.SIGKILL)
        if way.endswith("setuid"):
            os.setgid(65534)
            os.setuid(65534)
        print(way, os.getpid(), flush=True)
        while True:
            time.sleep(0.002)
            if way == "watched" and line.broken():
                os._exit(0)
while True:
    time.sleep(0.01)
"""


def test_every_way_in_which_a_child_notices_its_parents_death() -> None:
    """Each child ignores every signal that it can. One has dropped root, which clears PR_SET_PDEATHSIG."""
    need_root()
    with running(ORPHANS) as script:
        assert {line[0] for line in script.lines(4)} == {"pdeathsig", "armed", "armed+setuid", "watched"}
        assert len(script.others()) == 4
        script.signal(signal.SIGKILL)
        script.end()
        wait_until(lambda: not script.others(), 5, "orphans are left")


def test_a_parent_that_died_before_the_child_armed_is_noticed() -> None:
    """The child arms only after its parent is gone, when the kernel would send nothing."""
    code = """
import os, signal, sys, time
from prefork.system.parent_death import die_with_parent
from prefork.system.processes import System
system = System()
line = system.lifeline()
parent = os.getpid()
for way in ("pdeathsig", "armed"):
    if system.fork() is None:
        print(way, os.getpid(), flush=True)
        while os.getppid() == parent:
            time.sleep(0.001)
        if way == "armed":
            line.arm(signal.SIGKILL)
        else:
            die_with_parent(parent, signal.SIGKILL)
        print("alive", flush=True)
        time.sleep(60)
time.sleep(60)
"""
    with running(code) as script:
        script.lines(2)
        script.signal(signal.SIGKILL)
        script.end()
        wait_until(lambda: not script.others(), 5, "orphans are left")
        assert "alive" not in script.out


def test_a_parent_in_another_pid_namespace_counts_as_alive() -> None:
    need("unshare")
    need_root()
    code = """
import os, signal
from prefork.system.parent_death import die_with_parent
from prefork.system.processes import System
system = System()
parent = os.getpid()
os.unshare(os.CLONE_NEWPID) if hasattr(os, "unshare") else __import__("ctypes").CDLL(None).unshare(0x20000000)
child = system.fork()
if child is None:
    die_with_parent(parent, signal.SIGKILL)
    print("alive", os.getpid(), os.getppid())
    system.exit(0)
assert child.wait().clean
"""
    result = run_script(code)
    assert result.stdout == "alive 1 0\n", result
