"""As process 1 of a container, in namespaces with few process numbers, at limits of processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.support import need, need_root, rounds, run_script

SERVICE = """
import asyncio, os, subprocess, sys

ORPHANS = '''
import os, sys
for number in range(int(sys.argv[1])):
    if os.fork() == 0:
        # Its parent ends at once: it is process 1's then.
        if os.fork() == 0:
            os._exit(3 + number % 2)
        os._exit(0)
    os.wait()
'''

async def handle(stream):
    async for line in stream:
        words = line.decode().split()
        if words[0] == "orphans":
            subprocess.run([sys.executable, "-c", ORPHANS, words[1]], check=True)
        elif words[0] == "status":
            # Ours are ours to wait for.
            line = b"%d\\n" % sum(subprocess.run(["sh", "-c", "exit 3"]).returncode == 3 for _ in range(50))
        elif words[0] == "die":
            os._exit(1)
        elif words[0] == "pid":
            line = b"%d\\n" % os.getpid()
        stream.write(line)
"""

#: The supervisor as process 1 of a PID namespace, with /proc of its own; a driver beside it in the namespace.
DRIVER = """
import os, signal, socket, subprocess, sys, time
from pathlib import Path

pid = os.fork()
if pid == 0:
    time.sleep(0.1)

    def zombies():
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if fields[0] == "Z":
                    found.append(int(entry))
        return found

    def ask(text):
        for attempt in range(500):
            try:
                sock = socket.create_connection(("127.0.0.1", 9000), 20)
                break
            except OSError:
                time.sleep(0.02)
        with sock:
            sock.sendall(text.encode() + b"\\n")
            return sock.makefile("rb").readline().decode().strip()

    def wait_until(condition):
        for _ in range(1000):
            if condition():
                return
            time.sleep(0.01)
        raise AssertionError(condition)

    try:
        exec(CHECK)
        print("well", flush=True)
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os.kill(1, signal.SIGTERM)
        os._exit(0)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
os.execv(sys.executable, [sys.executable, "-m", "prefork", "serve", "service:handle", "-w", "2", "--control", "off",
    "--bind", "127.0.0.1:9000", *OPTIONS])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    need_root()
    need("unshare", "ip")
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def in_container(folder: Path, check: str, *options: str) -> tuple[str, str, int]:
    code = f"CHECK = {check!r}\nOPTIONS = {list(options)!r}\n{DRIVER}"
    done = run_script(
        code, prefix=("unshare", "-n", "-p", "-f", "--mount-proc", "--kill-child"), cwd=folder, deadline=50
    )
    return done.stdout, done.stderr, done.returncode


@pytest.mark.slow
def test_orphans_of_the_container_are_reaped_and_taken_for_no_worker(folder: Path) -> None:
    check = """
wait_until(lambda: len({ask("pid") for _ in range(30)}) == 2)
workers = {ask("pid") for _ in range(30)}
for _ in range(4):
    ask("orphans 250")
wait_until(lambda: not zombies())
assert {ask("pid") for _ in range(30)} == workers
assert ask("status") == "50"
"""
    out, err, code = in_container(folder, check)
    assert (out, code) == ("well\n", 0), err
    assert "died" not in err


def test_as_process_1_it_replaces_workers_that_die(folder: Path) -> None:
    check = """
wait_until(lambda: len({ask("pid") for _ in range(30)}) == 2)
before = {ask("pid") for _ in range(30)}
ask("die")
ask("orphans 20")
wait_until(lambda: len({ask("pid") for _ in range(30)} - before) == 1)
wait_until(lambda: not zombies())
os.kill(1, signal.SIGHUP)
wait_until(lambda: not {ask("pid") for _ in range(20)} & before)
# The two workers, and this process.
wait_until(lambda: len(Path("/proc/1/task/1/children").read_text().split()) == 3)
os.kill(1, signal.SIGUSR2)
ask("pid")
"""
    out, err, code = in_container(folder, check)
    assert (out, code) == ("well\n", 0), err
    assert "died: exit status 1" in err
    assert "reloaded: " in err
    assert "not upgrading (SIGUSR2): process 1 cannot be replaced" in err


@pytest.mark.slow
@rounds(4, 12)
def test_a_pid_that_is_used_again_is_not_mistaken_for_a_worker(folder: Path, rounds: int) -> None:
    """With a few hundred PIDs, those of dead workers soon belong to other processes, which must not be signalled."""
    check = """
limit = Path("/proc/sys/kernel/pid_max")
try:
    before = limit.read_text()
    limit.write_text("400")
except OSError as exc:
    print("skip", exc, flush=True)
canaries = [subprocess.Popen(["sleep", "300"]) for _ in range(20)]
first = {ask("pid") for _ in range(20)}
for turn in range(ROUNDS):
    os.kill(1, signal.SIGHUP)
    before = {ask("pid") for _ in range(20)}
    ask("orphans 150")
    # Some take numbers that were free a moment ago.
    canaries += [subprocess.Popen(["sleep", "300"]) for _ in range(5)]
wait_until(lambda: len({ask("pid") for _ in range(20)} & first) == 0)
assert all(canary.poll() is None for canary in canaries), "somebody was signalled"
for canary in canaries:
    canary.kill()
    canary.wait()
"""
    out, err, code = in_container(folder, check.replace("ROUNDS", str(rounds)), "--drain-timeout", "0.2")
    assert out.endswith("well\n"), err
    assert code == 0
    assert "Traceback" not in err


def test_at_the_limit_of_processes_running_workers_serve_on(folder: Path) -> None:
    need("prlimit")
    code = """
import os, resource, signal, socket, sys, time
from prefork.testing import run_server
from helpers.support import wait_until

def ask(port):
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(b"pid\\n")
        return int(sock.makefile("rb").readline())

with run_server("service:handle", "-w", "2") as server:
    workers = set(server.worker_pids())
    # Root has no limit of its own: so many processes as the group may have are there already.
    group = "/sys/fs/cgroup/pids/prefork-test-%d" % os.getpid()
    os.mkdir(group)
    try:
        open(group + "/cgroup.procs", "w").write(str(server.pid))
        open(group + "/pids.max", "w").write("1")
        victim = workers.pop()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: "cannot fork worker" in server.stderr())
        for _ in range(20):
            assert ask(server.port) in workers
        server.signal(signal.SIGHUP)
        wait_until(lambda: "reload failed" in server.stderr())
        assert {ask(server.port) for _ in range(10)} == workers
        open(group + "/pids.max", "w").write("max")
        wait_until(lambda: len(server.worker_pids()) == 2)
        assert server.stderr().count("cannot fork worker") == 1
        assert server.stop() == 0
    finally:
        server.signal(signal.SIGKILL)
        server.wait()
        wait_until(lambda: not open(group + "/cgroup.procs").read())
        os.rmdir(group)
print("well")
"""
    if not Path("/sys/fs/cgroup/pids/cgroup.procs").exists():
        pytest.skip("no control group of processes that a test could make (version 1)")
    done = run_script(code, cwd=folder, env={"PYTHONPATH": str(Path(__file__).parents[1])})
    assert done.stdout == "well\n", done.stderr
