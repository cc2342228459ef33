"""Workers at their recycling limits are replaced, one at a time, and no client notices."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest
from helpers.support import wait_until

from prefork.testing import Server, run_server

SERVICE = """
import os

hoard = []

async def handle(stream):
    async for line in stream:
        if line == b"hoard\\n":
            hoard.append(bytearray(os.urandom(1)) * (64 << 20))
        stream.write(b"%d\\n" % os.getpid())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def ask(server: Server, word: bytes = b"hello\n") -> int:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, sock.makefile("rb") as file:
        sock.sendall(word)
        return int(file.readline())


def recycled(server: Server) -> list[tuple[str, str]]:
    return re.findall(r"recycling worker (\d) \(pid \d+\): (.*)", server.stderr())


def test_a_worker_is_replaced_after_its_number_of_connections(folder: Path) -> None:
    with run_server("service:handle", "-w", "2", "--max-connections-served", "10", cwd=folder) as server:
        before = set(server.worker_pids())
        wait_until(lambda: ask(server) and not before & set(server.worker_pids()), 30, "the end of both workers")
        slots = {slot for slot, _ in recycled(server)}
        assert slots == {"0", "1"}
        assert all("connections (--max-connections-served)" in reason for _, reason in recycled(server))
        assert server.stop() == 0
        assert "died" not in server.stderr()


@pytest.mark.slow
def test_a_worker_is_replaced_after_its_lifetime(folder: Path) -> None:
    with run_server("service:handle", "-w", "2", "--max-worker-age", "0.5", cwd=folder) as server:
        before = set(server.worker_pids())
        wait_until(lambda: not before & set(server.worker_pids()), what="the end of both workers")
        assert "(--max-worker-age)" in recycled(server)[0][1]
        assert server.stop() == 0


def test_a_worker_above_its_memory_limit_is_replaced_after_its_connections_end(folder: Path) -> None:
    with run_server("service:handle", "-w", "1", "--max-worker-rss", "100M", cwd=folder) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, sock.makefile("rb") as file:
            sock.sendall(b"hoard\n")
            pid = int(file.readline())
            assert recycled(server) == []
            sock.sendall(b"hoard\n")
            assert int(file.readline()) == pid
            wait_until(lambda: recycled(server), what="recycling")
            wait_until(lambda: ask(server) != pid, what="the successor")
            sock.sendall(b"still here\n")
            assert int(file.readline()) == pid
        wait_until(lambda: pid not in server.worker_pids(), what="the end of the old worker")
        assert server.stop() == 0


def test_limits_that_are_too_low_do_not_cause_endless_forks(folder: Path) -> None:
    with run_server("service:handle", "-w", "2", "--max-connections-served", "1", cwd=folder) as server:
        for _ in range(300):
            ask(server)
        first = recycled(server)
        assert len(first) <= 10
        assert server.stop() == 0


@pytest.mark.slow
def test_a_memory_limit_below_what_a_new_worker_has_is_told_once_and_ignored(folder: Path) -> None:
    with run_server("service:handle", "-w", "2", "--max-worker-rss", "4M", cwd=folder) as server:
        before = server.worker_pids()
        ask(server, b"hoard\n")
        # Recycling comes 0.5 s after a worker is ready, and a second after another one.
        time.sleep(1.2)
        assert (recycled(server), server.worker_pids()) == ([], before)
        assert len(re.findall(r"--max-worker-rss 4194304: a worker that has served nothing", server.stderr())) == 1
        assert server.stop() == 0


@pytest.mark.slow
def test_an_old_worker_that_goes_on_to_grow_has_the_drain_timeout_to_end(folder: Path) -> None:
    options = ("-w", "1", "--max-worker-rss", "100M", "--drain-timeout", "0.2", "--hang-timeout", "1")
    with run_server("service:handle", *options, cwd=folder) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, sock.makefile("rb") as file:
            for _ in range(2):
                sock.sendall(b"hoard\n")
                pid = int(file.readline())
            wait_until(lambda: ask(server) != pid, what="the successor")
            for _ in range(2):
                sock.sendall(b"hoard\n")
                assert int(file.readline()) == pid
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        assert f"(pid {pid}) still drains, and uses " in server.stderr()
        assert server.stop() == 0
