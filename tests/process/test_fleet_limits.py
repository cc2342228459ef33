"""Limits over all workers: exact whichever worker accepts or dies, and as the current settings have them."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.proc import cpu_share
from helpers.servers import answer, asking
from helpers.support import need, need_root, run_script, wait_until

from prefork.testing import Server, run_server

SERVICE = """
import os, resource

async def handle(stream):
    stream.write(b"%d\\n" % os.getpid())
    async for line in stream:
        if line == b"limit\\n":
            line = b"%d %d\\n" % resource.getrlimit(resource.RLIMIT_NOFILE)
        stream.write(line)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def request(folder: Path, **words: Any) -> dict[str, Any]:
    return answer(asking(folder, words))


def open_now(folder: Path) -> int:
    return sum(worker["open"] for worker in request(folder, command="status")["workers"])


class Crowd:
    """Connections, of which some have been greeted: those that are served."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._poll = select.poll()
        self.socks: dict[int, socket.socket] = {}
        self.served: set[int] = set()

    def join(self, count: int) -> None:
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", self._server.port), timeout=20)
            self.socks[sock.fileno()] = sock
            self._poll.register(sock, select.POLLIN)

    def listen(self, seconds: float = 0.0) -> None:
        """Receive the greetings that come within `seconds`."""
        end = time.monotonic() + seconds
        while True:
            for fd, _ in self._poll.poll(max(0.0, end - time.monotonic()) * 1000):
                assert int(self.socks[fd].recv(100))
                self.served.add(fd)
                self._poll.unregister(fd)
            if time.monotonic() >= end:
                return

    def wait(self, served: int) -> None:
        def come() -> bool:
            self.listen()
            return len(self.served) >= served

        wait_until(come, 20, f"{served} of {len(self.socks)} served, {len(self.served)} are")

    def leave(self, count: int) -> None:
        """Close `count` of the served connections."""
        for _ in range(count):
            fd = self.served.pop()
            self.socks.pop(fd).close()

    def forget(self, dead: set[int]) -> None:
        for fd in dead:
            self.served.discard(fd)
            self.socks.pop(fd).close()

    def close(self) -> None:
        for sock in self.socks.values():
            sock.close()


@pytest.fixture
def crowds() -> Iterator[list[Crowd]]:
    made: list[Crowd] = []
    yield made
    for crowd in made:
        crowd.close()


class Watcher:
    """Counts open connections by the workers' own account, again and again."""

    def __init__(self, folder: Path) -> None:
        self.most = 0
        self.samples = 0
        self._folder = folder
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.is_set():
            self.most = max(self.most, open_now(self._folder))
            self.samples += 1

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.mark.parametrize("options", [[], ["--reuse-port"]])
def test_the_limit_holds_and_each_released_slot_is_used_again(
    folder: Path, crowds: list[Crowd], options: list[str]
) -> None:
    """200 may be open, 240 come, 60 leave; 1,000 of 1,200 is the catalogue's."""
    control = str(folder / "control")
    with run_server(
        "service:handle", "-w", "4", "--control", control, "--max-connections", "200", *options, cwd=folder
    ) as server:
        crowd = Crowd(server)
        crowds.append(crowd)
        crowd.join(240)
        crowd.wait(200)
        crowd.listen(0.3)
        assert len(crowd.served) == 200
        assert open_now(folder) == 200
        for _ in range(60):
            crowd.leave(1)
            crowd.join(1)
        crowd.wait(200)
        crowd.leave(200)
        crowd.wait(40)
        assert len(server.worker_pids()) == 4
        assert server.stderr().count("--max-connections") < 20, "a line now and then, not for each"


def test_the_limit_holds_at_every_moment(folder: Path) -> None:
    """Many come and go while places are scarce: never is one handler too many there, by the handlers' own account."""
    (folder / "service.py").write_text(
        "import asyncio, fcntl, struct\n"
        "# A count in a file that all workers share, changed under a lock: the most that were there at once.\n"
        "def count(more):\n"
        "    with open('count', 'r+b') as file:\n"
        "        fcntl.flock(file, fcntl.LOCK_EX)\n"
        "        now, most = struct.unpack('ii', file.read(8))\n"
        "        file.seek(0)\n"
        "        file.write(struct.pack('ii', now + more, max(most, now + more)))\n"
        "async def handle(stream):\n"
        "    count(1)\n"
        "    try:\n"
        "        line = await stream.readline()\n"
        "        await asyncio.sleep(0.01)\n"
        "        stream.write(line)\n"
        "    finally:\n"
        "        count(-1)\n"
    )
    (folder / "count").write_bytes(bytes(8))
    with run_server("service:handle", "-w", "4", "--max-connections", "5", cwd=folder) as server:
        served = [0] * 8
        failed: list[str] = []

        def client(number: int) -> None:
            for _ in range(30):
                try:
                    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
                        sock.sendall(b"x\n")
                        served[number] += sock.makefile("rb").readline() == b"x\n"
                except OSError as exc:
                    failed.append(repr(exc))

        clients = [threading.Thread(target=client, args=(number,)) for number in range(len(served))]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        assert failed == []
        assert sum(served) == 240
        now, most = (int.from_bytes((folder / "count").read_bytes()[i : i + 4], "little") for i in (0, 4))
        assert (now, most) == (0, 5)


def test_slots_of_a_dead_worker_are_free_again(folder: Path, crowds: list[Crowd]) -> None:
    control = str(folder / "control")
    with run_server("service:handle", "-w", "2", "--control", control, "--max-connections", "20", cwd=folder) as server:
        crowd = Crowd(server)
        crowds.append(crowd)
        crowd.join(20)
        crowd.wait(20)
        late = Crowd(server)
        crowds.append(late)
        late.join(5)
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        late.wait(5)
        assert open_now(folder) <= 20


def test_slots_of_draining_workers_count_until_released(folder: Path, crowds: list[Crowd]) -> None:
    control = str(folder / "control")
    with run_server("service:handle", "-w", "2", "--control", control, "--max-connections", "10", cwd=folder) as server:
        crowd = Crowd(server)
        crowds.append(crowd)
        crowd.join(10)
        crowd.wait(10)
        assert request(folder, command="reload")["ok"]
        late = Crowd(server)
        crowds.append(late)
        late.join(4)
        late.listen(0.3)
        assert late.served == set()
        # The old workers do not accept; the new ones are told that there is room.
        crowd.leave(4)
        late.wait(4)


def test_a_reload_changes_the_limit_for_those_that_run(folder: Path, crowds: list[Crowd]) -> None:
    config = folder / "prefork.toml"
    config.write_text("max_connections = 5\n")
    with run_server("service:handle", "-w", "2", "--control", f"{folder}/control", cwd=folder) as server:
        crowd = Crowd(server)
        crowds.append(crowd)
        crowd.join(12)
        crowd.wait(5)
        config.write_text("max_connections = 8\n")
        assert request(folder, command="reload")["ok"]
        crowd.wait(8)
        config.write_text("max_connections = 2\n")
        assert request(folder, command="reload")["ok"]
        crowd.leave(3)
        crowd.listen(0.3)
        assert len(crowd.served) == 5, "nobody is sent away, and nobody is let in"
        config.write_text("")
        assert request(folder, command="reload")["ok"]
        crowd.wait(9)


def test_the_limit_of_one_address_holds_over_all_workers(folder: Path) -> None:
    with run_server("service:handle", "-w", "4", "--max-connections-per-ip", "10", cwd=folder) as server:
        served: list[socket.socket] = []
        refused = 0
        for _ in range(40):
            sock = socket.create_connection(("127.0.0.1", server.port), timeout=20, source_address=("127.0.0.7", 0))
            try:
                word = sock.recv(100)
            except ConnectionResetError:
                word = b""
            if word:
                served.append(sock)
            else:
                refused += 1
                sock.close()
        assert (len(served), refused) == (10, 30)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as other:
            assert other.recv(100)
        assert "refused 127.0.0.7:" in server.stderr()
        for sock in served:
            sock.close()


def test_a_greedy_address_leaves_the_others_alone(folder: Path) -> None:
    """One address connects as fast as it can; what the others want is served all the same."""
    with run_server("service:handle", "-w", "2", "--max-connections-per-ip", "8", cwd=folder) as server:
        done = threading.Event()
        attempts = 0

        def flood() -> None:
            nonlocal attempts
            held: list[socket.socket] = []
            while not done.is_set():
                sock = socket.socket()
                sock.settimeout(5)
                try:
                    sock.bind(("127.0.0.66", 0))
                    sock.connect(("127.0.0.1", server.port))
                except OSError:
                    sock.close()
                    continue
                attempts += 1
                held.append(sock)
                if len(held) > 50:
                    held.pop(0).close()
            for sock in held:
                sock.close()

        attacker = threading.Thread(target=flood)
        attacker.start()
        try:
            for number in range(100):
                source = (f"127.0.1.{number + 1}", 0)
                with socket.create_connection(("127.0.0.1", server.port), timeout=20, source_address=source) as sock:
                    assert int(sock.recv(100))
        finally:
            done.set()
            attacker.join()
        assert attempts > 100
        seconds = 1 + int(time.clock_gettime(time.CLOCK_MONOTONIC))
        assert server.stderr().count("refused 127.0.0.66") <= 6 * seconds


def test_networks_of_64_bits_count_as_one(folder: Path) -> None:
    need_root()
    need("unshare", "ip")
    code = """
import socket, subprocess
from prefork.testing import run_server
subprocess.run("ip link set lo up; ip -6 route add local 2001:db8::/32 dev lo", shell=True, check=True)
# Any address may be the source of a connection.
open("/proc/sys/net/ipv6/ip_nonlocal_bind", "w").write("1")
with run_server("service:handle", "-w", "2", "--max-connections-per-ip", "3", bind=["[::]:0"]) as server:
    port = int(server.addresses[0].rpartition(":")[2])
    held = []
    def attempt(source):
        sock = socket.create_connection(("::1", port), 20, source_address=(source, 0))
        held.append(sock)
        try:
            return bool(sock.recv(100))
        except ConnectionResetError:
            return False
    print([attempt(f"2001:db8::{number:x}") for number in range(1, 6)])
    print([attempt(f"2001:db8:0:1::{number:x}") for number in range(1, 5)])
"""
    done = run_script(code, prefix=("unshare", "-n"), cwd=folder)
    assert done.stdout == "[True, True, True, False, False]\n[True, True, True, False]\n", done.stderr


def test_the_accept_rate_holds_over_all_workers(folder: Path, crowds: list[Crowd]) -> None:
    with run_server("service:handle", "-w", "2", "--accept-rate", "40", cwd=folder) as server:
        began = time.monotonic()
        crowd = Crowd(server)
        crowds.append(crowd)
        crowd.join(70)
        crowd.wait(70)
        assert time.monotonic() - began >= 30 / 40 * 0.9


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one(folder: Path) -> None:
    need("prlimit")
    with (
        run_server("service:handle", "-w", "1", cwd=folder, prefix=("prlimit", "--nofile=64:500")) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock,
    ):
        file = sock.makefile("rb")
        file.readline()
        sock.sendall(b"limit\n")
        assert file.readline() == b"500 500\n"
        file.close()


def test_a_worker_without_descriptors_pauses_and_its_siblings_accept(folder: Path, crowds: list[Crowd]) -> None:
    """A worker may have 64 descriptors, and 300 connections come: the other one takes what it cannot; then both are
    poor, and what is too much waits, and is served when others leave. Nothing is lost, and no worker spins."""
    options = ["--control", f"{folder}/control", "--drain-timeout", "0.5"]
    with run_server("service:handle", "-w", "2", *options, cwd=folder) as server:
        poor, other = server.worker_pids()
        resource.prlimit(poor, resource.RLIMIT_NOFILE, (64, 64))
        crowd = Crowd(server)
        crowds.append(crowd)
        crowd.join(300)
        crowd.wait(300)
        by_pid = {worker["pid"]: worker["open"] for worker in request(folder, command="status")["workers"]}
        assert by_pid[poor] <= 64 - 32
        held = len(os.listdir(f"/proc/{other}/fd"))
        resource.prlimit(other, resource.RLIMIT_NOFILE, (held + 20, held + 20))
        crowd.join(60)
        crowd.listen(0.5)
        assert cpu_share(poor, other) < 0.2, "a worker spins"
        waiting = len(crowd.socks) - len(crowd.served)
        assert waiting > 0
        crowd.leave(len(crowd.served) - 10)
        crowd.wait(10 + waiting)
        assert server.worker_pids() == [poor, other]
        assert "Traceback" not in server.stderr()
        # Those that are at the limit can still open what they need.
        assert request(folder, command="status")["ok"]
        assert server.stop() == 0


@pytest.mark.slow
def test_a_restart_with_thousands_in_time_wait_binds_at_once(folder: Path) -> None:
    """5 times, with 500 that the server itself has ended; 60,000 and 100 times are the catalogue's."""
    (folder / "service.py").write_text("async def handle(stream):\n    await stream.send(b'bye\\n')\n")
    port = 0
    for _ in range(5):
        with run_server("service:handle", "-w", "1", bind=[f"127.0.0.1:{port}"], cwd=folder) as server:
            port = server.port
            for _ in range(100):
                with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                    # The server's end comes first, and so it is the one that has to wait.
                    while sock.recv(100):
                        pass
            assert server.stop() == 0


@pytest.mark.slow
def test_connections_beyond_a_full_queue_are_retried_and_served(folder: Path) -> None:
    """No worker accepts, and more connections come than the queue holds: those in the queue are served in the end."""
    need_root()
    need("unshare", "ip")
    code = """
import os, signal, socket, subprocess, time
from pathlib import Path
from prefork.testing import run_server
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
# Without cookies: a connection that the kernel has forgotten is begun anew by its client.
Path("/proc/sys/net/ipv4/tcp_syncookies").write_text("0")
def overflows():
    names, values = [l.split() for l in Path("/proc/net/netstat").read_text().splitlines() if l.startswith("TcpExt")]
    return int(values[names.index("ListenOverflows")])
with run_server("service:handle", "-w", "2", "--backlog", "50") as server:
    workers = server.worker_pids()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    socks = []
    for _ in range(200):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", server.port))
        socks.append(sock)
    while not overflows():
        time.sleep(0.01)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    for sock in socks:
        # Those that were turned away try again by themselves (tcp(7), tcp_syn_retries), after a second, and two.
        sock.settimeout(30)
        assert int(sock.recv(100))
        sock.close()
    print("well", server.stop())
"""
    done = run_script(code, prefix=("unshare", "-n"), cwd=folder, deadline=55)
    assert done.stdout == "well 0\n", done.stderr


def test_a_refused_address_is_logged_at_a_limited_rate_and_escaped(folder: Path) -> None:
    with run_server("service:handle", "-w", "1", "--max-connections-per-ip", "1", cwd=folder) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as first:
            first.recv(100)
            for _ in range(300):
                with socket.socket() as sock:
                    sock.settimeout(20)
                    code = sock.connect_ex(("127.0.0.1", server.port))
                    assert code in (0, errno.ECONNRESET)
        assert server.stop() == 0
        assert 1 <= server.stderr().count("refused 127.0.0.1:") < 60


@pytest.mark.slow
def test_the_limit_of_an_address_is_exact_among_thousands_of_others(folder: Path) -> None:
    """With 3,000 addresses connected the counts of some had no place, and no limit, as long as there was one bucket for
    each: a dozen is tried."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8000:
        pytest.skip("too few descriptors may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (8000, hard))
    try:
        with (
            run_server("service:handle", "-w", "1", "--max-connections-per-ip", "2", cwd=folder) as server,
            contextlib.ExitStack() as stack,
        ):

            def connect(host: str) -> bytes:
                sock = stack.enter_context(socket.socket())
                sock.settimeout(20)
                sock.bind((host, 0))
                sock.connect(("127.0.0.1", server.port))
                with contextlib.suppress(ConnectionResetError):
                    return sock.recv(100)
                return b""

            crowd = [f"127.{number >> 8}.{number & 255}.1" for number in range(1, 3001)]
            assert all(connect(host) for host in crowd)
            for host in crowd[::250]:
                assert [bool(connect(host)) for _ in range(3)] == [True, False, False], host
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
