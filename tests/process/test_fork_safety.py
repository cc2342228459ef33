"""What a fork must not carry over: event loops, threads, random state, signal state, descriptors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers.forked import ONE_WRITE
from helpers.support import run_script

LIBC_SIGNALS = 0b11 << 31

CHILD = """
import os, prefork
try:
    prefork.fork_processes(1)
    print("forked")
except RuntimeError as exc:
    try:
        os.waitpid(-1, os.WNOHANG)
        print("a child was made")
    except ChildProcessError:
        print("refused:", exc)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    result = run_script(code, *arguments, env=ONE_WRITE)
    assert result.returncode == 0, result.stderr
    return result


# --- event loops ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "named"),
    [
        ("import asyncio\nloop = asyncio.new_event_loop()", "_UnixSelectorEventLoop running=False"),
        ("import asyncio\nasyncio.set_event_loop(asyncio.new_event_loop())", "_UnixSelectorEventLoop running=False"),
        ("import asyncio, gc\nloop = asyncio.new_event_loop()\ngc.freeze()", "anon_inode:[eventpoll]"),
        ("import uvloop\nloop = uvloop.new_event_loop()", "uvloop.Loop running=False"),
        ("import tornado.ioloop\ntornado.ioloop.IOLoop.current()", "_UnixSelectorEventLoop running=False"),
        ("import select\nepoll = select.epoll()", "anon_inode:[eventpoll]"),
        ("import selectors\nselector = selectors.DefaultSelector()", "anon_inode:[eventpoll]"),
    ],
    ids=["asyncio", "current", "hidden", "uvloop", "tornado", "epoll", "selector"],
)
def test_a_loop_that_exists_is_named_and_refused(before: str, named: str) -> None:
    out = run(before + CHILD).stdout
    assert out.startswith("refused: fork_processes: an event loop")
    assert named in out
    assert "create it after the fork, in each child" in out
    assert out.count("\n") == 1


@pytest.mark.parametrize("library", ["asyncio", "uvloop"])
def test_a_loop_that_runs_is_named_and_refused(library: str) -> None:
    body = CHILD.replace("\n", "\n    ")
    out = run(f"import asyncio, {library}\nasync def main():{body}\n{library}.run(main())").stdout
    assert out.startswith("refused: fork_processes: an event loop is running in this process (<")
    assert "running=True" in out


def test_a_loop_in_another_thread_is_refused() -> None:
    out = run(
        """
import asyncio, threading
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
while not loop.is_running(): pass
"""
        + CHILD
        + "loop.call_soon_threadsafe(loop.stop)"
    ).stdout
    assert out.startswith("refused: fork_processes: an event loop exists in this process")


@pytest.mark.parametrize(
    "before",
    [
        "import asyncio",
        "import asyncio\nasyncio.run(asyncio.sleep(0))",
        "import uvloop, asyncio\nuvloop.run(asyncio.sleep(0))\nloop = uvloop.new_event_loop()\nloop.close()",
        "import tornado.netutil, tornado.httpserver, tornado.process",
        # Inherited from the program that started this one: without close-on-exec.
        "import os, select\nepoll = select.epoll()\nos.set_inheritable(epoll.fileno(), True)",
        "import os\nevent = os.eventfd(0)",
        # Proxies that run code when they are looked at closely.
        "import asyncio\nclass Proxy:\n    @property\n    def __class__(self): raise OSError\nproxies = [Proxy()]",
    ],
    ids=["imported", "finished", "closed", "tornado-imported", "inherited", "eventfd", "proxy"],
)
def test_a_fork_is_allowed_if_no_loop_of_this_process_is_left(before: str) -> None:
    result = run("import warnings\nwarnings.simplefilter('error')\n" + before + CHILD)
    assert result.stdout == "forked\n", result.stderr
    assert result.stderr == ""


# --- threads ----------------------------------------------------------------------------------------------------------


def test_a_call_in_another_thread_is_refused() -> None:
    code = f"""
import threading
thread = threading.Thread(target=exec, args=({CHILD!r}, {{}}), name="helper")
thread.start()
thread.join()
"""
    out = run(code).stdout
    assert out.startswith("refused: fork_processes: called in thread 'helper'; call it in the main thread")


THREADS = """
import _thread, threading, time
release = threading.Event()
threading.Thread(target=release.wait, name="poller", daemon=True).start()
started = []
lock = _thread.allocate_lock()
lock.acquire()
# What `threading` does not know of stands for a thread that a C library started.
_thread.start_new_thread(lambda: (started.append(1), lock.acquire()), ())
while not started: time.sleep(0.001)
"""


def test_other_threads_are_named_in_a_warning() -> None:
    result = run(THREADS + CHILD)
    assert result.stdout == "forked\n"
    assert (
        "RuntimeWarning: fork_processes: forking while 2 other threads are running (Thread 'poller', native thread"
        in result.stderr
    )
    assert "start threads after the fork, in each child" in result.stderr
    assert result.stderr.count("RuntimeWarning") == 1
    # It points at the caller's line.
    assert "<string>:" in result.stderr or "-c:" in result.stderr


def test_connections_that_are_open_are_named_in_a_warning() -> None:
    """The database's, say: the children would take each other's answers."""
    code = (
        "import socket\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "database = socket.create_connection(listener.getsockname())\n"
        "one, other = socket.socketpair()\n"
        "fresh = socket.socket()\n"
        "passed_on = database.dup(); passed_on.set_inheritable(True)\n"
        "print(listener.getsockname()[1], database.fileno(), one.fileno(), other.fileno())\n"
    )
    result = run(code + CHILD)
    port, database, one, other = result.stdout.splitlines()[0].split()
    assert result.stdout.endswith("forked\n")
    assert (
        f"fork_processes: forking with connections open: 127.0.0.1:{port} (descriptor {database}), "
        f"unix: (descriptor {one}), unix: (descriptor {other}); the children share them" in result.stderr
    )
    assert result.stderr.count("RuntimeWarning") == 1


def test_other_threads_are_refused_when_warnings_are_errors() -> None:
    result = run(
        "import warnings\nwarnings.simplefilter('error', RuntimeWarning)\n"
        + THREADS
        + CHILD.replace("RuntimeError", "RuntimeWarning")
    )
    assert result.stdout.startswith("refused: fork_processes: forking while 2 other threads are running")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python warns of it from 3.12 on")
def test_pythons_own_warning_of_threads_comes_through() -> None:
    result = run("import warnings\nwarnings.simplefilter('always')\n" + THREADS + CHILD)
    assert "DeprecationWarning: This process" in result.stderr
    assert "is multi-threaded, use of fork() may lead to deadlocks" in result.stderr


def test_signals_are_passed_on_also_when_another_thread_receives_them() -> None:
    """A process-directed signal goes to any thread that does not block it: the parent must hear of it all the same."""
    result = run(
        """
import os, signal, threading, time, warnings, prefork
warnings.simplefilter("ignore")
reader, writer = os.pipe()
def interrupt():
    for _ in range(2):
        os.read(reader, 1)  # both children are there
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    time.sleep(30)
threading.Thread(target=interrupt, daemon=True).start()
prefork.fork_processes(2)
os.write(writer, b"x")
time.sleep(60)
"""
    )
    assert result.returncode == 0


# --- random numbers ---------------------------------------------------------------------------------------------------


def test_no_two_children_draw_the_same_random_numbers() -> None:
    result = run(
        """
import random, secrets, ssl, uuid, os, prefork
random.random(), secrets.token_bytes(8), ssl.RAND_bytes(8), uuid.uuid4()  # all of them used before the fork
# A Python whose `random` does not reseed itself:
os.register_at_fork(after_in_child=lambda: random.seed(1))
prefork.fork_processes(24)
for name, draw in {
    "random": lambda: f"{random.getrandbits(64):x}", "secrets": lambda: secrets.token_hex(8),
    "ssl": lambda: ssl.RAND_bytes(8).hex(), "uuid4": lambda: str(uuid.uuid4()),
}.items():
    os.write(1, (name + " " + " ".join(draw() for _ in range(100)) + "\\n").encode())
"""
    )
    drawn: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        name, *numbers = line.split()
        drawn.setdefault(name, []).extend(numbers)
    assert {name: len(numbers) for name, numbers in drawn.items()} == dict.fromkeys(
        ["random", "secrets", "ssl", "uuid4"], 2400
    )
    for name, numbers in drawn.items():
        assert len(set(numbers)) == 2400, name


# --- signals and descriptors ------------------------------------------------------------------------------------------


def test_a_child_has_the_signal_state_of_a_fresh_python() -> None:
    result = run(
        """
import json, os, signal, subprocess, sys, time, prefork
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored
STATUS = "{l.split(':')[0]: l.split()[1] for l in open('/proc/self/status') if l[:6] in ('SigBlk', 'SigIgn', 'SigCgt')}"
PRINT = f"import json; print(json.dumps({STATUS}))"
fresh = json.loads(subprocess.check_output([sys.executable, "-X", "faulthandler", "-c", PRINT]))
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM, signal.SIGUSR1):
    signal.signal(sig, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 3600)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
prefork.fork_processes(2)
print(json.dumps([fresh, eval(STATUS), signal.set_wakeup_fd(-1), signal.getitimer(signal.ITIMER_REAL)[0],
    signal.getsignal(signal.SIGINT) is signal.default_int_handler]))
"""
    )
    for line in result.stdout.splitlines():
        fresh, status, wakeup, timer, interruptible = json.loads(line)
        # Signals 32 and 33 are the C library's own: posix_spawn, which may have started the fresh one, ignores them.
        for field in ("SigBlk", "SigIgn", "SigCgt"):
            assert int(status[field], 16) & ~LIBC_SIGNALS == int(fresh[field], 16) & ~LIBC_SIGNALS, field
        assert int(status["SigBlk"], 16) == 0
        assert (wakeup, timer, interruptible) == (-1, 0.0, True)
    assert result.stdout.count("\n") == 2


def test_a_child_holds_what_the_parent_had_opened_a_pipe_the_inboxes_and_nothing_of_siblings(
    tmp_path: Path,
) -> None:
    result = run(
        """
import json, os, socket, sys, prefork
listener = socket.create_server(("127.0.0.1", 0))
def descriptors():
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # that of the listing
    return found
before = descriptors()
marks = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_APPEND)
before[str(marks)] = os.readlink(f"/proc/self/fd/{marks}")
task = prefork.fork_processes(3)
print(json.dumps([before, descriptors()]))
os.write(marks, b"%d" % task)
# One that was restarted, when all siblings were there, is no different.
if open(sys.argv[1]).read().count("1") < 2 and task == 1:
    sys.exit(1)
""",
        str(tmp_path / "marks"),
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 4
    added = set()
    for before, after in lines:
        extra = {fd: what for fd, what in after.items() if before.get(fd) != what}
        assert {fd: after.get(fd) for fd in before} == before
        added.add(frozenset(extra.values()))
    assert len(added) == 1, "the same in all of them"
    kinds = Counter(each.partition(":")[0] for each in added.pop())
    assert kinds == {"pipe": 1, "socket": 2 * 3}, "both ends of three inboxes"


def test_output_that_waits_in_a_buffer_is_written_once() -> None:
    result = run("import prefork\nprint('banner')\nprefork.fork_processes(4)")
    assert result.stdout == "banner\n"
