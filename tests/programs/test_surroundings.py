"""What a program finds in a worker of `prefork run`, and may do there: as in a process of its own, but shared."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.support import wait_until

from prefork.testing import Server, run_program
from programs.running import START

pytestmark = pytest.mark.deadline(120)

#: Answers each connection with a line of JSON, and keeps it until its peer ends it.
TELLING = """
import asyncio, json, os, signal, socket, sys, threading

def tell(writer, **what):
    writer.write(json.dumps({"pid": os.getpid(), **what}).encode() + b"\\n")

async def answer(reader, writer):
    tell(writer, **state())
    await reader.read()
    writer.close()
"""


@contextlib.contextmanager
def running(folder: Path, code: str, *arguments: str, options: tuple[str, ...] = ()) -> Iterator[Server]:
    """Run a program of this text in two workers, whose old ones end in time too."""
    install(folder, code)
    options = ("-w", "2", "--drain-timeout", "5", "--reload-drain-timeout", "5", "--stop-timeout", "3", *options)
    with run_program("program.py", *arguments, options=options, cwd=folder, timeout=START) as server:
        yield server


def install(folder: Path, code: str) -> None:
    """Write the program as a deployment does it: beside, and then over."""
    (folder / "program.new").write_text(TELLING + textwrap.dedent(code))
    (folder / "program.new").rename(folder / "program.py")


def connecting(server: Server, index: int = 0) -> socket.socket:
    """Return a connection to the address of that index."""
    address = server.addresses[index]
    path = address.removeprefix("unix:")
    sock = socket.socket(socket.AF_INET if path == address else socket.AF_UNIX)
    sock.settimeout(30)
    try:
        sock.connect(("127.0.0.1", int(address.rpartition(":")[2])) if path == address else path)
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def connected(server: Server, index: int = 0) -> Iterator[dict[str, Any]]:
    """Connect to the address of that index, and yield what the program tells."""
    with connecting(server, index) as sock, sock.makefile("rb") as file:
        line = file.readline()
        assert line, "closed without an answer"
        yield json.loads(line)


def ask(server: Server, index: int = 0) -> dict[str, Any]:
    """Return what the program tells a connection to the address of that index."""
    with connected(server, index) as told:
        return told


def ask_each(server: Server, index: int = 0) -> list[dict[str, Any]]:
    """Return what the program tells in each worker, by two connections at a time."""
    found: dict[int, dict[str, Any]] = {}
    workers = set(server.worker_pids())

    def both() -> bool:
        with connected(server, index) as one, connected(server, index) as other:
            found.update({one["pid"]: one, other["pid"]: other})
        return set(found) >= workers

    wait_until(both, 30, f"answers of {workers}")
    return [found[pid] for pid in sorted(workers)]


def reload(server: Server) -> None:
    """Reload, and wait until every worker from before has ended."""
    old = set(server.worker_pids())
    _reload(server, "reloaded: ")
    wait_until(lambda: not old & set(server.worker_pids()), 30, "the end of the old workers")


def status(folder: Path) -> dict[str, Any]:
    """Return what `prefork status` says of the server whose control socket is in the folder."""
    words = (sys.executable, "-m", "prefork", "status", "--json", "--control", "control")
    found: dict[str, Any] = json.loads(subprocess.check_output(words, cwd=folder, timeout=30))
    return found


def fail_to_reload(server: Server) -> None:
    """Reload, and wait until the successor has failed."""
    _reload(server, "reload failed, the running workers stay")


def _reload(server: Server, outcome: str) -> None:
    before = server.stderr().count(outcome)
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.stderr().count(outcome) > before, 2 * START, outcome)


SERVING = """
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        await server.serve_forever()

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_the_environment_names_the_worker_and_hides_the_supervisors(tmp_path: Path) -> None:
    code = "def state():\n    return {'environment': dict(os.environ)}\n" + SERVING
    with running(tmp_path, code) as server:
        found = [each["environment"] for each in ask_each(server)]
        assert {each["PREFORK_WORKER_ID"] for each in found} == {"0", "1"}
        reload(server)
        found += [each["environment"] for each in ask_each(server)]
        assert {each["PREFORK_WORKERS"] for each in found} == {"2"}
        assert len({each["PREFORK_GENERATION"] for each in found}) == 2
        assert {each["WEB_CONCURRENCY"] for each in found} == {"1"}
        for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET"):
            assert not any(name in each for each in found)


def test_argv_and_paths_are_as_python_sets_them(tmp_path: Path) -> None:
    code = """
    def state():
        return {"argv": sys.argv, "name": __name__, "file": __file__, "path": sys.path[0],
                "main": sys.modules["__main__"].__dict__ is globals(), "directory": os.getcwd()}
    """
    with running(tmp_path, textwrap.dedent(code) + SERVING, "--its", "own", "-w", "9") as server:
        told = ask(server)
    del told["pid"]
    assert told == {
        "argv": ["program.py", "--its", "own", "-w", "9"],
        "name": "__main__",
        "file": told["file"],
        "path": str(tmp_path),
        "main": True,
        "directory": str(tmp_path),
    }
    assert (tmp_path / told["file"]).samefile(tmp_path / "program.py")


def test_signals_are_as_in_a_fresh_process(tmp_path: Path) -> None:
    code = """
    FOUND = {name: str(signal.getsignal(getattr(signal, name))) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGCHLD")}
    FOUND["SIGINT"] = str(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    FOUND["mask"] = str(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    def state():
        return FOUND
    """
    with running(tmp_path, textwrap.dedent(code) + SERVING) as server:
        for told in ask_each(server):
            del told["pid"]
            default = str(signal.Handlers.SIG_DFL)
            assert told == {
                **dict.fromkeys(("SIGTERM", "SIGHUP", "SIGUSR1", "SIGCHLD"), default),
                "SIGINT": "True",
                "mask": "set()",
            }


LEAVING = """
def state():
    return {}

def leave(word):
    with open("left", "a") as file:
        file.write(word + "\\n")
"""


def test_a_program_without_handlers_ends_by_keyboard_interrupt(tmp_path: Path) -> None:
    code = LEAVING + SERVING.replace(
        "    asyncio.run(main())",
        "    try:\n        asyncio.run(main())\n    except KeyboardInterrupt:\n        leave('^C')",
    )
    with running(tmp_path, code) as server:
        assert server.stop() == 0, server.stderr()
    assert (tmp_path / "left").read_text() == "^C\n^C\n"


@pytest.mark.parametrize(
    "how", ["signal.signal(signal.SIGTERM, on_term)", "loop.add_signal_handler(signal.SIGTERM, on_term)"]
)
def test_a_programs_handler_of_term_is_called_when_its_worker_drains(how: str, tmp_path: Path) -> None:
    code = (
        LEAVING
        + f"""
async def main():
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def on_term(*_):
        leave("TERM")
        loop.call_soon_threadsafe(ended.set)

    {how}
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        await ended.wait()
    leave("end")

asyncio.run(main())
"""
    )
    with running(tmp_path, code) as server:
        assert server.stop() == 0, server.stderr()
    words = (tmp_path / "left").read_text().split()
    assert sorted(words) == ["TERM", "TERM", "end", "end"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", ["start_server(answer_slowly, '127.0.0.1', 0)", "start_unix_server(answer_slowly, 'a')"]
)
def test_a_handler_of_term_cuts_no_answer_off(where: str, tmp_path: Path) -> None:
    code = f"""
async def answer_slowly(reader, writer):
    await reader.readline()
    await asyncio.sleep(2)
    tell(writer)
    writer.close()

async def main():
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    server = await asyncio.{where}
    await ended.wait()
    os._exit(0)

asyncio.run(main())
"""
    with running(tmp_path, code) as server:
        workers = server.worker_pids()
        with connecting(server) as sock, sock.makefile("rb") as file:
            sock.sendall(b"a request\n")
            reload(server)
            assert json.loads(file.readline())["pid"] in workers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "wait"),
    [
        ("", "signal.sigwait({signal.SIGINT, signal.SIGTERM})"),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})", "signal.sigwait({signal.SIGTERM})"),
        ("", "signal.sigwaitinfo({signal.SIGINT, signal.SIGTERM})"),
        ("signal.signal(signal.SIGTERM, lambda *_: None)", "signal.pause()"),
        (
            "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})",
            "thread = threading.Thread(target=signal.sigwait, args=({signal.SIGTERM},)); thread.start(); thread.join()",
        ),
        ("ended = threading.Event(); signal.signal(signal.SIGTERM, lambda *_: ended.set())", "ended.wait()"),
    ],
    ids=["sigwait", "blocked", "sigwaitinfo", "pause", "in a thread", "event"],
)
def test_a_program_may_wait_for_signals_while_its_loop_runs_in_a_thread(before: str, wait: str, tmp_path: Path) -> None:
    code = LEAVING + SERVING.partition("if __name__")[0]
    code += f"""
import threading
{before}
threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
{wait}
leave("end")
os._exit(0)
"""
    with running(tmp_path, code) as server:
        ask_each(server)
        reload(server)
        ask_each(server)
        assert (tmp_path / "left").read_text() == "end\n" * 2
        assert server.stop() == 0, server.stderr()
        assert "killed" not in server.stderr()
    assert (tmp_path / "left").read_text() == "end\n" * 4


def test_a_child_of_a_program_ends_with_its_own_exit_status(tmp_path: Path) -> None:
    code = """
    def state():
        return {"status": os.waitstatus_to_exitcode(STATUS)}

    child = os.fork()
    if child == 0:
        sys.exit(7)
    _, STATUS = os.waitpid(child, 0)
    """
    with running(tmp_path, textwrap.dedent(code) + SERVING) as server:
        assert [each["status"] for each in ask_each(server)] == [7, 7]
        assert "Traceback" not in server.stderr()
        assert server.stop() == 0


def test_a_socket_does_not_seem_to_listen_before_the_program_listens(tmp_path: Path) -> None:
    code = """
    import threading

    def listens():
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    FOUND = [listens()]
    sock.listen()
    FOUND.append(listens())

    def state():
        return {"found": FOUND}

    async def main():
        loop = asyncio.get_running_loop()
        async with await asyncio.start_server(answer, sock=sock) as server:
            await server.serve_forever()

    asyncio.run(main())
    """
    with running(tmp_path, code) as server:
        reload(server)
        assert [each["found"] for each in ask_each(server)] == [[0, 1], [0, 1]]


def test_a_second_port_0_is_a_second_port(tmp_path: Path) -> None:
    code = """
    import functools

    def state():
        return {}

    async def main():
        async def on(number, reader, writer):
            tell(writer, number=number)
            await reader.read()
            writer.close()

        servers = [await asyncio.start_server(functools.partial(on, number), "127.0.0.1", 0) for number in range(2)]
        await asyncio.gather(*(server.serve_forever() for server in servers))

    asyncio.run(main())
    """
    with running(tmp_path, code, options=("--control", "control")) as server:
        assert len(set(server.addresses)) == 2
        assert status(tmp_path)["listeners"] == [f"{address} (tcp)" for address in server.addresses]
        for number in range(2):
            assert [each["number"] for each in ask_each(server, number)] == [number] * 2


def test_a_port_that_a_program_opens_later_is_its_own(tmp_path: Path) -> None:
    code = """
    async def answer(reader, writer):
        async def once(reader, writer):
            tell(writer, port=0)
            writer.close()

        async with await asyncio.start_server(once, "127.0.0.1", 0) as own:
            tell(writer, port=own.sockets[0].getsockname()[1])
            await reader.read()
        writer.close()
    """
    with running(tmp_path, textwrap.dedent(code) + SERVING) as server:
        for _ in range(10):
            with connected(server) as one, connected(server) as other:
                assert one["port"] != other["port"]
                for told in (one, other):
                    with socket.create_connection(("127.0.0.1", told["port"]), timeout=10) as sock:
                        assert json.loads(sock.makefile().readline())["pid"] == told["pid"]


def test_a_socket_may_be_watched_before_it_is_bound(tmp_path: Path) -> None:
    """As pyftpdlib does. An epoll watches a file, and bind puts another one under the same descriptor."""
    code = """
    import select

    sock = socket.socket()
    watching = select.epoll()
    watching.register(sock, select.EPOLLIN)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    connections = []
    while True:
        for fd, _ in watching.poll():
            assert fd == sock.fileno()
            connections.append(sock.accept()[0])
            connections[-1].sendall(json.dumps({"pid": os.getpid()}).encode() + b"\\n")
    """
    with running(tmp_path, code, options=("--drain-timeout", "1", "--reload-drain-timeout", "1")) as server:
        ask_each(server)
        reload(server)
        ask_each(server)


def test_a_unix_socket_is_shared_and_its_file_stays(tmp_path: Path) -> None:
    code = """
    def state():
        return {}

    async def main():
        server = await asyncio.start_unix_server(answer, "program.sock")
        async with server:
            await server.serve_forever()

    asyncio.run(main())
    """
    with running(tmp_path, code) as server:
        inode = os.stat(tmp_path / "program.sock").st_ino
        ask_each(server)
        reload(server)
        ask_each(server)
        assert os.stat(tmp_path / "program.sock").st_ino == inode
        assert server.stop() == 0


def test_what_create_server_returns_is_a_server_of_asyncio(tmp_path: Path) -> None:
    code = """
    def state():
        return FOUND

    FOUND = {}

    async def main():
        server = await asyncio.start_server(answer, "127.0.0.1", 0, start_serving=False)
        FOUND["before"] = server.is_serving()
        await server.start_serving()
        FOUND["serving"] = server.is_serving()
        FOUND["port"] = server.sockets[0].getsockname()[1]
        FOUND["kind"] = isinstance(server, asyncio.AbstractServer)
        FOUND["names"] = [name for name in dir(asyncio.Server) if name[0] != "_" and not hasattr(server, name)]
        FOUND["same"] = server.get_loop() is asyncio.get_running_loop()
        async with server:
            await server.serve_forever()

    asyncio.run(main())
    """
    with running(tmp_path, code) as server:
        for told in ask_each(server):
            del told["pid"]
            assert told == {
                "before": False,
                "serving": True,
                "port": server.port,
                "kind": True,
                "names": [],
                "same": True,
            }


@pytest.mark.slow
def test_new_code_that_does_not_listen_never_replaces_what_runs(tmp_path: Path) -> None:
    code = "def state():\n    return {}\n" + SERVING
    with running(tmp_path, code, options=("--boot-timeout", "3")) as server:
        workers = set(server.worker_pids())
        install(tmp_path, "raise RuntimeError('no database')")
        fail_to_reload(server)
        install(tmp_path, "import time\ntime.sleep(3600)")
        fail_to_reload(server)
        assert f"127.0.0.1:{server.port}" in server.stderr().rpartition("listening on")[2]
        assert set(server.worker_pids()) == workers
        ask_each(server)
        install(tmp_path, code)
        reload(server)
        assert not workers & {each["pid"] for each in ask_each(server)}


def test_a_reload_does_not_change_what_tells_that_a_worker_is_ready(tmp_path: Path) -> None:
    settings = tmp_path / "prefork.toml"
    settings.write_text("ready = 'listen'")
    with running(tmp_path, "def state():\n    return {}\n" + SERVING) as server:
        # The descriptor of a worker would take the place of one that the supervisor uses.
        settings.write_text("ready = 'fd:5'")
        _reload(server, "--ready: cannot be changed by a reload (restart the server)")
        ask_each(server)


def test_a_program_that_ends_before_it_listens_is_a_failed_start(tmp_path: Path) -> None:
    install(tmp_path, "raise RuntimeError('no database')")
    options = ("-w", "2")
    with run_program("program.py", options=options, cwd=tmp_path, wait_ready=False) as server:
        assert server.wait() == 3
        assert "no database" in server.stderr()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("hypercorn") is None, reason="hypercorn is not installed")
def test_a_program_that_starts_workers_of_its_own_is_told_how_not_to(tmp_path: Path) -> None:
    from programs.catalogue import SERVERS

    words = ("-m", "hypercorn", "app:app", "--bind", "127.0.0.1:0")
    options = ("-w", "2", "--boot-timeout", "5")
    with run_program(*words, options=options, cwd=SERVERS, wait_ready=False) as server:
        assert server.wait(60) == 3, server.stderr()
        assert "--workers 0" in server.stderr()


@pytest.mark.slow
def test_options_that_do_not_apply_to_a_program_without_a_loop_are_named(tmp_path: Path) -> None:
    code = """
    import socketserver

    class Answer(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"x")

    socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer).serve_forever()
    """
    options = ("--max-connections", "100", "--idle-timeout", "5")
    with running(tmp_path, textwrap.dedent(code), options=options) as server:
        told = "these do not apply to it: --max-connections, --idle-timeout"
        wait_until(lambda: told in server.stderr(), 20, told)
        assert server.stderr().count("--hang-timeout does not apply") == 1
        assert server.stderr().count(told) == 1


@pytest.mark.slow
@pytest.mark.parametrize("run", ["asyncio.run(main())", "import uvloop; uvloop.run(main())"])
def test_a_loop_that_hangs_is_found_and_its_worker_replaced(run: str, tmp_path: Path) -> None:
    code = f"""
    import time

    def state():
        return {{}}

    async def hang(reader, writer):
        time.sleep(60)

    async def main():
        serving = [await asyncio.start_server(answer, "127.0.0.1", 0), await asyncio.start_server(hang, "127.0.0.1", 0)]
        await serving[0].serve_forever()

    {run}
    """
    with running(tmp_path, textwrap.dedent(code), options=("--hang-timeout", "1")) as server:
        old = set(server.worker_pids())
        with socket.create_connection(("127.0.0.1", int(server.addresses[1].rpartition(":")[2]))):
            wait_until(lambda: "in hang" in server.stderr(), 30, "the stacks of the worker")
            wait_until(lambda: len(set(server.worker_pids()) - old) == 1, 30, "the next worker")
        assert ask(server)["pid"] in server.worker_pids()


def test_limits_of_the_fleet_hold_for_a_program_on_a_loop(tmp_path: Path) -> None:
    code = "def state():\n    return {}\n" + SERVING
    options = ("--max-connections", "3", "--at-limit", "refuse", "--control", str(tmp_path / "control"))
    with running(tmp_path, code, options=options) as server, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connected(server))
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            assert sock.recv(1) == b""
        assert sum(each["open"] for each in status(tmp_path)["workers"]) == 3
        stack.close()
        # The workers have yet to see that the connections have ended.
        wait_until(lambda: sum(each["open"] for each in status(tmp_path)["workers"]) == 0, 20, "their end")
        assert ask(server)["pid"] in server.worker_pids()


def test_ps_shows_the_program_that_is_run(tmp_path: Path) -> None:
    code = "def state():\n    return {}\n" + SERVING
    with running(tmp_path, code) as server:
        titles = {Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0") for pid in (server.pid, *server.worker_pids())}
        assert titles == {
            b"prefork: supervisor [program.py]",
            b"prefork: worker 0 [program.py]",
            b"prefork: worker 1 [program.py]",
        }


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        """
        server = socket.create_server(("127.0.0.1", 0))
        connections = []
        while True:
            connection = server.accept()[0]
            connection.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\\n")
            threading.Thread(target=lambda: (connection.recv(1), connection.close()), daemon=True).start()
        """,
        """
        def state():
            return {}

        async def main():
            async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
                await server.serve_forever()

        asyncio.run(main())
        """,
    ],
    ids=["threads", "asyncio"],
)
def test_an_old_worker_keeps_its_connection_until_the_server_stops(code: str, tmp_path: Path) -> None:
    options = ("-w", "1", "--drain-timeout", "0.5", "--reload-drain-timeout", "off", "--stop-timeout", "3")
    with running(tmp_path, code, options=options) as server:
        with connecting(server) as sock, sock.makefile("rb") as file:
            old = json.loads(file.readline())["pid"]
            server.signal(signal.SIGHUP)
            wait_until(lambda: "reloaded: " in server.stderr(), 60, "the reload")
            time.sleep(0.8)  # longer than the drain timeout: what must not happen has no end to wait for
            assert old in server.worker_pids()
            server.signal(signal.SIGTERM)
            assert file.readline() == b""
        assert server.wait(30) == 0, server.stderr()
        assert "killed" not in server.stderr()
