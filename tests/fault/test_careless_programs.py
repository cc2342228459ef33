"""Programs that know nothing of prefork, and do to their process what a process of their own would bear."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.support import slow, wait_until

from prefork.testing import Server, run_program

pytestmark = pytest.mark.deadline(120)

COMMON = """
import asyncio, os, signal, socket, sys, threading, time

async def answer(reader, writer):
    writer.write(b"%d\\n" % os.getpid())
    writer.close()

async def serve(port=0, **options):
    server = await asyncio.start_server(answer, "127.0.0.1", port, **options)
    async with server:
        await server.serve_forever()
"""


@contextlib.contextmanager
def running(folder: Path, code: str, options: tuple[str, ...] = ()) -> Iterator[Server]:
    (folder / "program.py").write_text(COMMON + textwrap.dedent(code))
    options = ("-w", "2", "--drain-timeout", "5", "--reload-drain-timeout", "5", "--stop-timeout", "3", *options)
    with run_program("program.py", options=options, cwd=folder, timeout=60) as server:
        yield server


def ask(server: Server) -> int:
    """Connect, and return the worker that answers."""
    with socket.create_connection(("127.0.0.1", server.port), 30) as sock:
        return int(sock.makefile().readline())


def ask_each(server: Server) -> None:
    wait_until(lambda: {ask(server), ask(server)} == set(server.worker_pids()), 30)


def reload(server: Server) -> None:
    """Reload, and wait until every worker from before has ended."""
    old = set(server.worker_pids())
    before = server.stderr().count("reloaded: ")
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.stderr().count("reloaded: ") > before and not old & set(server.worker_pids()), 60)


@pytest.mark.parametrize("how", ["os.closerange(3, 65536)", "[os.close(fd) for fd in range(3, 4096) if is_open(fd)]"])
def test_a_program_may_close_every_descriptor_that_it_does_not_know(tmp_path: Path, how: str) -> None:
    """Its files had the numbers of the worker's pipes then, and got the worker's messages."""
    code = f"""
    def is_open(fd):
        return os.path.exists(f"/proc/self/fd/{{fd}}")

    {how}
    files = [open(f"file-{{number}}-{{os.getpid()}}", "wb", buffering=0) for number in range(50)]
    asyncio.run(serve())
    """
    with running(tmp_path, code) as server:
        ask_each(server)
        reload(server)
        ask_each(server)
        assert server.stop() == 0
    assert [path.name for path in tmp_path.glob("file-*") if path.stat().st_size] == []


def test_a_program_closes_what_it_has_opened(tmp_path: Path) -> None:
    code = """
    for _ in range(3):
        fd = os.open("/dev/null", os.O_RDONLY)
        os.close(fd)
        assert not os.path.exists(f"/proc/self/fd/{fd}")
        os.closerange(fd, fd + 1)
    fd = os.open("/dev/null", os.O_RDONLY)
    child = os.fork()
    if child == 0:
        os.closerange(3, 65536)
        os._exit(any(os.path.exists(f"/proc/self/fd/{fd}") for fd in range(3, 4096)))
    assert os.waitpid(child, 0)[1] == 0
    asyncio.run(serve())
    """
    with running(tmp_path, code) as server:
        ask_each(server)


@pytest.mark.parametrize("number", [3, 77])
def test_a_program_says_that_it_is_ready_by_any_descriptor(tmp_path: Path, number: int) -> None:
    """The supervisor's lowest free descriptor could not be kept for it."""
    code = f"""
    async def main():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        os.write({number}, b"ready\\n")
        os.close({number})
        await server.serve_forever()

    asyncio.run(main())
    """
    with running(tmp_path, code, options=("--ready", f"fd:{number}")) as server:
        ask_each(server)
        reload(server)
        ask_each(server)


def test_a_program_may_forget_its_server(tmp_path: Path) -> None:
    """asyncio's own is kept by its loop; this one closed its sockets, whose numbers the next one got."""
    code = """
    import gc

    async def main():
        await asyncio.start_server(answer, "127.0.0.1", 0)
        gc.collect()
        await asyncio.Event().wait()

    asyncio.run(main())
    """
    with running(tmp_path, code) as server:
        ask_each(server)
        reload(server)
        ask_each(server)


@pytest.mark.slow
def test_a_second_loop_may_listen_where_a_closed_one_did(tmp_path: Path) -> None:
    code = """
    async def listen(port=0):
        server = await asyncio.start_server(answer, "127.0.0.1", port)
        return server.sockets[0].getsockname()[1]

    port = asyncio.run(listen())
    asyncio.run(serve(port))
    """
    # What the first loop accepts ends with it.
    with running(tmp_path, code, options=("--ready", "delay:1")) as server:
        ask_each(server)
        reload(server)
        ask_each(server)


def test_the_threads_of_a_program_may_each_listen_on_the_same_port(tmp_path: Path) -> None:
    code = """
    async def main():
        first = await asyncio.start_server(answer, "127.0.0.1", PORT, reuse_port=True)
        second = await asyncio.start_server(answer, "127.0.0.1", PORT, reuse_port=True)
        first.close()
        await first.wait_closed()
        third = await asyncio.start_server(answer, "127.0.0.1", PORT, reuse_port=True)
        await asyncio.gather(second.serve_forever(), third.serve_forever())

    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind(("127.0.0.1", 0))
        PORT = found.getsockname()[1]
    threading.Thread(target=asyncio.run, args=(serve(PORT, reuse_port=True),), daemon=True).start()
    asyncio.run(main())
    """
    with running(tmp_path, code) as server:
        ask_each(server)
        reload(server)
        ask_each(server)
        assert server.stop() == 0


@pytest.mark.slow
def test_a_reload_loses_no_connection_of_a_program_that_starts_its_servers_one_by_one(tmp_path: Path) -> None:
    """Its first server found connections to the second one in the inbox that it shares with its predecessor."""
    code = """
    async def main():
        await asyncio.start_server(answer, "127.0.0.1", 0)
        await asyncio.sleep(0.3)
        await serve()

    asyncio.run(main())
    """
    with running(tmp_path, code, options=("--ready", "delay:1")) as server, ThreadPoolExecutor(4) as pool:
        port = int(server.addresses[1].rpartition(":")[2])
        stopped = threading.Event()
        clients = [pool.submit(count_unanswered, port, stopped) for _ in range(4)]
        try:
            for _ in range(3):
                reload(server)
        finally:
            stopped.set()
        assert [each.result() for each in clients] == [0] * 4


def count_unanswered(port: int, stopped: threading.Event) -> int:
    """Connect again and again until `stopped`, and return how often there was no answer."""
    unanswered = 0
    while not stopped.is_set():
        with socket.create_connection(("127.0.0.1", port), 30) as sock:
            unanswered += not sock.recv(100)
    return unanswered


def test_a_program_may_serve_a_connection_before_it_has_all_of_its_ports(tmp_path: Path) -> None:
    """Its second port was another one then, and it was never ready."""
    code = """
    async def main():
        first = await asyncio.start_server(answer, "127.0.0.1", 0)
        if os.environ["PREFORK_GENERATION"] != "0":
            host, port = first.sockets[0].getsockname()
            while True:
                reader, writer = await asyncio.open_connection(host, port)
                if int(await reader.readline()) == os.getpid():
                    break
        await serve()

    asyncio.run(main())
    """
    with running(tmp_path, code) as server:
        addresses = server.addresses
        reload(server)
        ask_each(server)
        assert server.addresses == addresses


@pytest.mark.parametrize("method", ["fork", slow("spawn"), slow("forkserver")])
def test_a_program_may_have_processes_of_its_own(tmp_path: Path, method: str) -> None:
    """What they listen on among themselves is no address of the program."""
    code = f"""
    import multiprocessing

    def work(queue):
        queue.put(os.getpid())

    if __name__ == "__main__":
        context = multiprocessing.get_context("{method}")
        queue = context.Queue()
        child = context.Process(target=work, args=(queue,))
        child.start()
        assert queue.get(timeout=30) == child.pid
        child.join()
        assert child.exitcode == 0
        with context.Manager() as manager:
            shared = manager.dict(a=1)
            assert dict(shared) == {{"a": 1}}
            asyncio.run(serve())
    """
    with running(tmp_path, code) as server:
        assert all(not address.startswith("unix:") for address in server.addresses)
        ask_each(server)
        reload(server)
        ask_each(server)
        assert server.stop() == 0


def test_the_path_of_a_unix_socket_that_has_a_pid_is_the_workers_own(tmp_path: Path) -> None:
    code = """
    async def main():
        own = await asyncio.start_unix_server(answer, f"worker-{os.getpid()}.sock")
        await serve()

    asyncio.run(main())
    """
    with running(tmp_path, code) as server:
        for pid in server.worker_pids():
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(os.fspath(tmp_path / f"worker-{pid}.sock"))
                assert int(sock.makefile().readline()) == pid
        reload(server)


def test_a_program_may_remove_the_directory_of_its_unix_socket_at_its_start(tmp_path: Path) -> None:
    """Its successor removed the file that both are reached by. Two that start at once would be in each other's way."""
    code = """
    import shutil

    async def main():
        if os.path.exists("run"):
            shutil.rmtree("run")
        os.makedirs("run", exist_ok=True)
        server = await asyncio.start_unix_server(answer, "run/socket")
        await serve()

    asyncio.run(main())
    """
    with running(tmp_path, code, options=("-w", "1")) as server:
        reload(server)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(os.fspath(tmp_path / "run/socket"))
            assert int(sock.makefile().readline()) in server.worker_pids()
        assert server.stop() == 0
    assert not (tmp_path / "run/socket").exists()
