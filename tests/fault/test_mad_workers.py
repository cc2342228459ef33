"""A misbehaving or hijacked worker attacks the rest of the server, and harms only itself."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.opened import open_folder, run_opened
from helpers.proc import cpu_share, gone, open_files
from helpers.servers import command, ready, serving, status
from helpers.support import need_root, wait_until

SERVICE = """
import contextlib, fcntl, json, os, socket, threading

def pipes():
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            pipe = os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
            if fd > 2 and pipe and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                yield fd

def say(data):
    for fd in pipes():
        os.write(fd, data)

def flood(fd):
    data = json.dumps({"spent": "x" * 3000}).encode() + b"\\n"
    while True:
        with contextlib.suppress(OSError):
            os.write(fd, data)

def deaf():
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            with socket.socket(fileno=os.dup(fd)) as sock:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    sock.shutdown(socket.SHUT_RDWR)

async def handle(stream):
    async for line in stream:
        word, _, rest = line.strip().partition(b" ")
        if word == b"deep":
            say(b'{"a":' * int(rest) + b"\\n")
        elif word == b"forge":
            say(json.dumps({"unable": "a\\nFORGED LINE \\x1b[31m"}).encode() + b"\\n")
        elif word == b"flood":
            for fd in pipes():
                threading.Thread(target=flood, args=(fd,), daemon=True).start()
        elif word == b"deaf":
            deaf()
        stream.write(line)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def tell(address: str, line: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as sock:
        sock.sendall(line)
        return sock.makefile("rb").readline()


@pytest.mark.slow
@pytest.mark.parametrize("depth", [100, 800, 4000, 12000])
def test_a_deeply_nested_message_of_a_worker_is_survived(folder: Path, depth: int) -> None:
    with serving(folder) as server:
        tell(server.addresses[0], b"deep %d\n" % depth)
        assert status(folder)["state"] == "serving"
        assert server.stop() == 0
        assert "Traceback" not in server.stderr()


def test_a_worker_cannot_forge_log_lines_of_the_supervisor(folder: Path) -> None:
    with serving(folder) as server:
        tell(server.addresses[0], b"forge\n")
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.stderr().count("restarting") == 2)
        assert "\nFORGED" not in server.stderr()
        assert "\x1b" not in server.stderr()


def test_a_worker_that_floods_its_status_pipe_costs_little_cpu(folder: Path) -> None:
    with serving(folder) as server:
        tell(server.addresses[0], b"flood\n")
        # Reading it at full speed would keep a CPU busy.
        assert cpu_share(server.pid) < 0.3
        assert len(server.stderr()) < 4000
        assert command(folder, "status").returncode == 0
        assert server.stop() == 0


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:0"])
def test_a_listening_socket_that_was_shut_down_listens_again(folder: Path, bind: str) -> None:
    """One worker's shutdown(2) stops it for all workers. A port that the kernel has chosen stays the same."""
    with serving(folder, bind=[bind, "127.0.0.1:0"]) as server:
        tell(server.addresses[0], b"deaf\n")
        for address in server.addresses:
            wait_until(lambda address=address: f"{address} was shut down" in server.stderr(), 20)
            wait_until(lambda address=address: _answers(address), 20, f"{address} answers")
        assert server.stop() == 0


def _answers(address: str) -> bool:
    try:
        return tell(address, b"hello\n") == b"hello\n"
    except OSError:
        return False


# --- the scoreboard ---------------------------------------------------------------------------------------------------

#: A hijacked worker: the client says which attack it tries.
ATTACKER = """
import ctypes, mmap, os, struct

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
LIBC.mremap.restype = ctypes.c_void_p
PAGE, BAD = mmap.PAGESIZE, ctypes.c_void_p(-1).value

def maps(kind):
    for entry in open("/proc/self/maps"):
        fields = entry.split()
        if "prefork-scoreboard" in entry and fields[1].startswith(kind):
            start, end = (int(part, 16) for part in fields[0].split("-"))
            yield start, end

def writes(address):
    # The address may be behind the end of the file now, where there is no memory (SIGBUS).
    pid = os.fork()
    if pid == 0:
        ctypes.memset(address, 0x7F, 64)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0

def reached(word):
    (own_start, own_end), = maps("rw")
    readable = list(maps("r--"))
    if word == "mprotect":
        return any(LIBC.mprotect(ctypes.c_void_p(start), end - start, 3) == 0 for start, end in readable)
    if word == "remap_file_pages":
        # 216 on x86-64, 234 elsewhere: map another page of the file over a page of the worker's own part.
        number = 216 if os.uname().machine == "x86_64" else 234
        beyond = (own_end - own_start) // PAGE
        for page in (beyond, beyond + 1, beyond + 100):
            if LIBC.syscall(number, ctypes.c_void_p(own_start), PAGE, 0, ctypes.c_size_t(page), 0) == 0:
                return writes(own_start)
        return False
    if word == "mremap":
        new = LIBC.mremap(ctypes.c_void_p(own_start), ctypes.c_size_t(own_end - own_start),
                          ctypes.c_size_t(4 * (own_end - own_start)), 1)
        if new == BAD:
            return False
        return writes(new + own_end - own_start)
    if word == "descriptors":
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd != "x"
                 and os.path.lexists(f"/proc/self/fd/{fd}")]
        return any("scoreboard" in link for link in links)
    if word == "map_files":
        for start, end in readable:
            try:
                fd = os.open(f"/proc/self/map_files/{start:x}-{end:x}", os.O_RDWR)
            except OSError:
                continue
            return os.pwrite(fd, b"x", 0) > 0
        return False
    if word == "mem":
        try:
            fd = os.open("/proc/self/mem", os.O_RDWR)
            return os.pwrite(fd, b"xxxxxxxx", readable[0][0]) > 0
        except OSError:
            return False
    if word.startswith("writev"):
        pid, address = map(int, word.split(":")[1:])
        data = ctypes.create_string_buffer(b"x" * 8)
        local = struct.pack("PN", ctypes.addressof(data), 8)
        remote = struct.pack("PN", address, 8)
        return LIBC.syscall(311 if os.uname().machine == "x86_64" else 271, pid, local, 1, remote, 1, 0) > 0

def lie(field, value):
    (start, end), = maps("rw")
    ctypes.c_int64.from_address(start + 8 * field).value = value

async def handle(stream):
    async for line in stream:
        word, *numbers = line.decode().split()
        answer = "done"
        if word == "lie":
            lie(*map(int, numbers))
        elif word == "pid":
            answer = str(os.getpid())
        else:
            answer = str(reached(word))
        stream.write(answer.encode() + b"\\n")
"""


@pytest.fixture
def attacked() -> Iterator[Path]:
    with open_folder() as place:
        (place / "service.py").write_text(ATTACKER)
        yield place


WAYS = ["mprotect", "remap_file_pages", "mremap", "descriptors"]


@pytest.mark.slow
@pytest.mark.parametrize("way", [*WAYS, "map_files", "mem"])
def test_no_call_reaches_another_row_of_the_scoreboard(attacked: Path, way: str) -> None:
    """The kernel refuses the last two only to an unprivileged user: root may do anything to itself."""
    if way in WAYS:
        with serving(attacked) as server:
            assert tell(server.addresses[0], f"{way}\n".encode()) == b"False\n"
            # The attacker may at most have damaged its own row, and died of it.
            wait_until(lambda: len(ready(attacked)) == 2)
            assert len(tell(server.addresses[0], b"pid\n")) > 1
            assert server.stop() == 0
        return
    need_root()
    assert run_opened(_AS_NOBODY.format(way=way), attacked) == "False\n"


_AS_NOBODY = """
import socket
from prefork.testing import run_server
def tell(server, line):
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall(line)
        return sock.makefile().readline()
with run_server("service:handle", "--user", "nobody", "-w", "1") as server:
    print(tell(server, b"{way}\\n"), end="")
"""


def test_no_worker_with_a_user_of_its_own_writes_to_its_supervisor(attacked: Path) -> None:
    need_root()
    code = _AS_NOBODY.replace('print(tell(server, b"{way}\\n"), end="")', "")
    code += """
    with open(f"/proc/{server.pid}/maps") as maps:
        address = next(int(line.split("-")[0], 16) for line in maps if "scoreboard" in line and "rw-s" in line)
    print(tell(server, b"writev:%d:%d\\n" % (server.pid, address)), end="")
"""
    assert run_opened(code, attacked) == "False\n"


OPEN, SHARE, STOPPED = 1, 2, 5


@pytest.mark.parametrize(
    ("field", "value"),
    [(OPEN, 2**63 - 1), (OPEN, -(2**63)), (SHARE, 2**63 - 1), (SHARE, -(2**63)), (STOPPED, 1), (0, 2**63 - 1)],
)
@pytest.mark.slow
def test_an_impossible_number_in_a_row_does_not_harm_siblings(attacked: Path, field: int, value: int) -> None:
    with serving(attacked, "--max-connections", "50", "--hang-timeout", "1", workers=3) as server:
        address = server.addresses[0]
        tell(address, f"lie {field} {value}\n".encode())
        pids = {tell(address, b"pid\n") for _ in range(40)}
        assert len(pids) >= 2
        # Workers that start later count right, too.
        for pid in server.worker_pids()[:1]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(ready(attacked)) == 3)
        assert all(tell(address, b"pid\n") for _ in range(20))
        assert status(attacked)["state"] == "serving"


def test_a_worker_that_claims_more_than_it_has_is_replaced(attacked: Path) -> None:
    """Its siblings may not accept what it claims, so the supervisor checks claims at the limit."""
    with serving(attacked, "--max-connections", "50", "--drain-timeout", "0.2", workers=2) as server:
        address = server.addresses[0]
        tell(address, f"lie {OPEN} 100000\n".encode())
        wait_until(lambda: "it claims 99999 connections" in server.stderr())
        wait_until(lambda: {worker["generation"] for worker in ready(attacked)} == {0} and len(ready(attacked)) == 2)
        wait_until(lambda: sum(worker["open"] for worker in status(attacked)["workers"]) < 50, 20)
        assert tell(address, b"pid\n")


def test_waiting_for_connection_capacity_costs_little_cpu(attacked: Path) -> None:
    """At the limit workers poll for free capacity: there is no eventfd that a worker could flood."""
    with serving(attacked, "--max-connections", "3", workers=3) as server, contextlib.ExitStack() as stack:
        host, _, port = server.addresses[0].rpartition(":")
        socks = [stack.enter_context(socket.create_connection((host, int(port)), 10)) for _ in range(3)]
        for sock in socks:
            sock.sendall(b"pid\n")
            assert sock.recv(100)
        waiting = stack.enter_context(socket.create_connection((host, int(port)), 10))
        wait_until(lambda: server.stderr().count("accepting on") == 3)
        for pid in server.worker_pids():
            links = open_files(pid).values()
            assert "anon_inode:[eventfd]" not in links
        assert cpu_share(*server.worker_pids()) < 0.1
        assert server.stderr().count("accepting on") == 3
        # Freed capacity is used again.
        socks.pop().close()
        waiting.sendall(b"pid\n")
        waiting.settimeout(10)
        assert int(waiting.recv(100)) in server.worker_pids()


# --- the lifeline -----------------------------------------------------------------------------------------------------

WRITER = """
import os
async def handle(stream):
    async for line in stream:
        written = 0
        for fd in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
                    again = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
                    written += os.write(again, b"x\\n")
            except OSError:
                continue
        stream.write(b"%d\\n" % written)
"""


@pytest.mark.parametrize("pidfd", [True, False])
def test_a_byte_in_the_parent_death_pipe_ends_no_worker(tmp_path: Path, pidfd: bool) -> None:
    (tmp_path / "service.py").write_text(WRITER if pidfd else "import os\ndel os.pidfd_open\n" + WRITER)
    with serving(tmp_path, workers=3) as server:
        before = set(server.worker_pids())
        assert tell(server.addresses[0], b"x\n") != b"0\n"
        assert all(tell(server.addresses[0], b"x\n") for _ in range(10))
        assert set(server.worker_pids()) == before
        server.signal(signal.SIGKILL)
        wait_until(lambda: all(map(gone, before)))
