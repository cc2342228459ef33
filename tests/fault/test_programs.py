"""A hostile program in a worker of `prefork run` attacks its supervisor, and harms only itself."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.opened import open_folder, run_opened
from helpers.proc import cpu_share, open_files
from helpers.servers import command, ready, state, status
from helpers.support import need_root, wait_until

from prefork.parent.requests import MAX_REFUSALS
from prefork.testing import Server, run_program

#: A hijacked program: the client, or its arguments, say which attack it tries.
HOSTILE = """
import array, asyncio, contextlib, fcntl, json, os, socket, sys, threading, time
import prefork.worker.lease

#: The socket that leads to the supervisor.
CHANNEL = socket.socket(fileno=os.dup(prefork.worker.lease._channel.fileno()))

def say(line):
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            pipe = os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
            if fd > 2 and pipe and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                os.write(fd, line)

def send(value, *fds):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    CHANNEL.sendmsg([value if isinstance(value, bytes) else json.dumps(value).encode()], rights)

def flood(*values):
    while True:
        for value in values:
            send(value)

def babble(fd):
    name = os.environ.get("NOTIFY_SOCKET", "").replace("@", "\\0")
    while name:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.connect(name)
            while True:
                sock.send(b"STATUS=babbling")
    while True:
        os.write(int(fd), b"x" * 4096)

def full_pipe():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)
    return writer

def bind(path, number, port=0, family=socket.AF_UNIX):
    return {"number": number, "bind": [family, path, port, 0], "nth": 0, "v6only": True, "mode": 0o600}

def attack(word, *rest):
    if word == "block":
        writer = full_pipe()
        for name in ("", "a"):
            send({"number": 1, "lease": name}, writer)
            send({"number": 2, "bind": [1, "/x", 0, 0]}, writer, 0, 1, 2)
            os.set_blocking(writer, True)
    elif word == "garbage":
        for packet in (b"[" * 4000, b"{}", b"\\xff", b"x" * 60000, b'{"number": 1}', b'{"number": 9e99, "held": ""}',
                       b'{"number": 1, "held": "\\\\ud800"}', b'{"number": 1, "lease": "\\\\ud800"}', b"1"):
            send(packet)
        for host in ("\\ud800", "/\\udcff" * 20, "/", "/\\0", "x", "\\0", "::%1", "1.2.3.4\\n", "::ffff:1.2.3.4"):
            for family in (1, 2, 10, True, -1):
                send(bind(host, 3, family=family))
    elif word == "forge":
        for number in rest:
            say(b'{"listening": %d}\\n' % int(number))
    elif word == "flood":
        held, lease = {"number": 1, "held": "/nowhere"}, {"number": 1, "lease": "a"}
        threading.Thread(target=flood, args=(held, lease), daemon=True).start()
    elif word == "binds":
        # In a directory whose lock never comes free.
        lock = os.open(".", os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        for number in range(1, 200):
            send(bind(os.path.abspath("hostile.py"), number))
            CHANNEL.recv(4096)
        os.close(lock)
    elif word == "babble":
        threading.Thread(target=babble, args=rest, daemon=True).start()
        time.sleep(60)
    elif word == "forge-ready":
        time.sleep(60 if os.environ["PREFORK_WORKER_ID"] == "0" else 1)
        say(b"\\n")
        forged = open("forged", "w")

async def handle(reader, writer):
    while line := await reader.readline():
        attack(*line.decode().split())
        writer.write(line)

async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    attack(*sys.argv[1:] or ["nothing"])
    async with server:
        await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hostile.py").write_text(HOSTILE)
    return tmp_path


@contextlib.contextmanager
def running(folder: Path, *arguments: str, options: tuple[str, ...] = (), wait_ready: bool = True) -> Iterator[Server]:
    times = ("--drain-timeout", "1", "--reload-drain-timeout", "1", "--stop-timeout", "3")
    options = ("-w", "2", *times, "--control", str(folder / "control"), *options)
    with run_program("hostile.py", *arguments, options=options, cwd=folder, wait_ready=wait_ready) as server:
        yield server


def tell(server: Server, line: bytes) -> bytes:
    """Have one worker try an attack; what it answers afterwards."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall(line + b"\n")
        return sock.makefile("rb").readline()


def reload(server: Server) -> None:
    before = server.stderr().count("reloaded: ")
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.stderr().count("reloaded: ") > before, 60, server.stderr())


@pytest.mark.parametrize("attack", [b"block", b"garbage"])
def test_no_packet_of_a_worker_blocks_the_supervisor_nor_ends_it(folder: Path, attack: bytes) -> None:
    with running(folder) as server:
        before = len(open_files(server.pid))
        assert tell(server, attack)
        assert status(folder)["state"] == "serving"
        assert len(open_files(server.pid)) < before + 10
        reload(server)
        assert server.stop() == 0
        assert "Traceback" not in server.stderr()


def test_a_worker_that_floods_its_channel_costs_little_cpu(folder: Path) -> None:
    with running(folder) as server:
        tell(server, b"flood")
        assert cpu_share(server.pid) < 0.3
        assert command(folder, "status").returncode == 0
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("by", ["notify", "fd:9"])
def test_a_worker_that_babbles_where_it_should_say_that_it_is_ready_costs_little_cpu(folder: Path, by: str) -> None:
    with running(folder, "babble", "9", options=("--ready", by), wait_ready=False) as server:
        wait_until(lambda: state(folder) == "booting" and len(server.worker_pids()) == 2)
        assert cpu_share(server.pid) < 0.3
        assert server.stop() == 0


def test_a_worker_cannot_say_that_its_sibling_is_ready(folder: Path) -> None:
    with running(folder, "forge-ready", options=("--ready", "fd:9"), wait_ready=False):
        wait_until((folder / "forged").exists, 30)
        wait_until(lambda: ready(folder))
        assert [worker["slot"] for worker in ready(folder)] == [1]


def test_a_forged_socket_does_not_keep_the_worker_from_being_replaced(folder: Path) -> None:
    with running(folder) as server:
        control = next(
            name.removeprefix("socket:[").removesuffix("]")
            for name in open_files(server.pid).values()
            if name.startswith("socket:[") and name.removeprefix("socket:[").removesuffix("]") in _unix(folder)
        )
        for _ in range(4):
            tell(server, f"forge 1 2 3 {control}".encode())
        reload(server)
        assert "listening on unix:" not in server.stderr()
        assert server.stop() == 0


@pytest.mark.slow
def test_addresses_that_cannot_be_bound_hold_up_nothing_and_fill_no_log(folder: Path) -> None:
    with running(folder, "binds") as server:
        # Many in a moment, and not all.
        wait_until(lambda: server.stderr().count("it is not a socket") == 2 * MAX_REFUSALS, 20)
        assert tell(server, b"hello")
        assert server.stop() == 0


#: A program of `nobody` asks its supervisor, root, for addresses, and prints those that it gets.
AS_NOBODY = """
import os, subprocess, sys
from pathlib import Path
from prefork.testing import run_program

PROGRAM = '''
import asyncio, os, sys
from prefork.core.worker_requests import BindRequest, Granted
from prefork.worker import lease

ADDRESSES = [
    (2, "127.0.0.1", 80), (10, "::1", 443), (2, "127.0.0.1", 0), (1, "private/x", 0), (1, "listed/x", 0),
    (1, "own/x", 0), (1, "own/link/x", 0), (1, "own/../listed/x", 0), (1, "/proc/self/cwd/x", 0),
]

async def main():
    for family, host, port in ADDRESSES:
        name = os.path.join(os.getcwd(), host) if family == 1 else host
        answer, _ = lease._channel.ask(BindRequest(family, name, port))
        if isinstance(answer, Granted):
            print(f"granted {host}:{port}", file=sys.stderr, flush=True)
    await (await asyncio.start_server(print, "127.0.0.1", 0)).serve_forever()

asyncio.run(main())
'''
Path("program.py").write_text(PROGRAM)
for name, mode, owner in (("private", 0o700, 0), ("listed", 0o755, 0), ("own", 0o755, 65534)):
    Path(name).mkdir(mode)
    os.chown(name, owner, owner)
Path("own/link").symlink_to(Path("listed").absolute())
with run_program("program.py", options=("--user", "nobody", "-w", "1")) as server:
    print([line.removeprefix("granted ") for line in server.stderr().splitlines() if line.startswith("granted")])
    assert server.stop() == 0
print(sorted(map(str, Path().glob("*/x"))))
"""


def test_a_program_gets_no_address_that_its_user_might_not_bind() -> None:
    need_root()
    with open_folder() as folder:
        assert run_opened(AS_NOBODY, folder).splitlines() == ["['127.0.0.1:0', 'own/x:0']", "[]"]


#: It damages the sockets that it shares with its siblings, as the client says.
DAMAGING = """
import _socket, asyncio, contextlib, ctypes, os, signal, struct

NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
FILTER = struct.pack("@HL", 1, ctypes.addressof(NOTHING))

def damage(how):
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            sock = _socket.socket(fileno=os.dup(fd))
            if not sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN):
                continue
            if how == b"shutdown":
                sock.shutdown(_socket.SHUT_RDWR)
            elif how == b"filter" and sock.family != _socket.AF_UNIX:
                # SO_ATTACH_FILTER and SO_LOCK_FILTER
                sock.setsockopt(_socket.SOL_SOCKET, 26, FILTER)
                sock.setsockopt(_socket.SOL_SOCKET, 44, 1)
            elif how == b"blocking":
                os.set_blocking(fd, True)

async def handle(reader, writer):
    line = await reader.readline()
    if line != b"hello\\n":
        damage(line.strip())
        os.kill(os.getpid(), signal.SIGKILL)
    writer.write(line)
    writer.close()

async def main():
    await asyncio.start_unix_server(handle, "socket")
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    await server.serve_forever()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [b"shutdown", b"filter", b"blocking"])
def test_a_socket_that_a_worker_has_damaged_serves_again_after_its_end(folder: Path, how: bytes) -> None:
    (folder / "hostile.py").write_text(DAMAGING)
    with running(folder) as server:
        assert tell(server, how) == b""
        wait_until(lambda: "another process; listening again" in server.stderr() or "changed" in server.stderr(), 30)
        wait_until(lambda: _answers(server), 30, server.stderr())
        wait_until(lambda: _answers(folder / "socket"), 30, server.stderr())
        # What had to be bound again needs new workers.
        rebound = "address bound again" in server.stderr()
        wait_until(lambda: not rebound or "reloaded: " in server.stderr(), 30)
        reload(server)
        assert server.stop() == 0


def _answers(where: Server | Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        if isinstance(where, Server):
            return tell(where, b"hello") == b"hello\n"
        sock.settimeout(10)
        sock.connect(str(where))
        sock.sendall(b"hello\n")
        return sock.recv(100) == b"hello\n"
    return False


def _unix(folder: Path) -> set[str]:
    """Return the inodes of the sockets that are bound in this directory (proc(5))."""
    rows = [row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {row[6] for row in rows if len(row) > 7 and row[7].startswith(str(folder))}
