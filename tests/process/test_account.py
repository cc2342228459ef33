"""The account of a fleet: every connection that clients made is open, or closed for the reason that they gave it."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.servers import serving, status
from helpers.support import wait_until

from prefork.testing import run_server

ROOT = Path(__file__).parents[2]
SERVICE = """
import asyncio, contextlib


async def handle(stream):
    async for line in stream:
        if line == b"fail\\n":
            raise ValueError("as asked")
        if line == b"leave\\n":
            return
        if line == b"stay\\n":
            stream.write(line)
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
        if line == b"flood\\n":
            stream.write(bytes(20 * 1024 * 1024))
        stream.write(line)


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        if data == b"fail\\n":
            raise ValueError("as asked")
        self.transport.write(data)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def connect(port: int, data: bytes = b"hello\n") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.sendall(data)
    if data == b"hello\n":
        assert sock.recv(100) == data
    return sock


def end(sock: socket.socket) -> None:
    """Wait for the server's end of a connection."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    sock.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def totals(folder: Path) -> dict[str, Any]:
    """Return the totals of one moment, of which the account must close, and which the slots must add up to."""
    told = status(folder)
    found: dict[str, Any] = told["totals"]
    assert found["accepted"] == found["open"] + sum(found["closed"].values())
    slots = [slot["totals"] for slot in (*told["slots"], *told["former_slots"])]
    assert sum(slot["accepted"] for slot in slots) == found["accepted"]
    assert found["open"] == sum(worker["open"] for worker in told["workers"])
    return found


def closed(folder: Path) -> dict[str, int]:
    return {reason: count for reason, count in totals(folder)["closed"].items() if count}


def test_each_connection_has_the_reason_of_its_end(folder: Path) -> None:
    options = ("--idle-timeout", "0.3", "--max-connections-per-ip", "4", "--drain-timeout", "0.3")
    log = folder / "access.log"
    with serving(folder, *options, "--access-log", str(log)) as server:
        expected = {}

        def expect(reason: str, count: int = 1) -> None:
            expected[reason] = expected.get(reason, 0) + count
            wait_until(lambda: closed(folder) == expected)

        connect(server.port).close()
        expect("done")
        end(connect(server.port, b"leave\n"))
        expect("done")
        end(connect(server.port, b"fail\n"))
        expect("handler_failed")
        reset(connect(server.port))
        expect("peer_reset")
        end(connect(server.port))
        expect("idle_timeout")
        end(connect(server.port, bytes(200_000)))
        expect("read_limit")
        flooded = connect(server.port, b"flood\n")
        expect("unsent_limit")
        reset(flooded)
        many = [connect(server.port) for _ in range(4)]
        end(connect(server.port, b""))
        expect("max_connections_per_ip")
        for sock in many:
            sock.close()
        expect("done", 4)
        found = totals(folder)
        assert found["accepted"] == 12
        assert found["open"] == 0
        assert found["handler_failures"] == 1
        assert found["deadlines"] == 1
        assert found["refused"] == 1
        assert found["received"] > 60_000
        assert sum(found["durations"]["counts"]) == 11
        # The access log has the same ends.
        wait_until(lambda: log.read_text().count("\n") == 12)
        words = [line.split(" ") for line in log.read_text().splitlines()]
        assert Counter(line[7] for line in words) == expected
        assert {line[2] for line in words} == {f"127.0.0.1:{server.port}"}
        assert sum(int(line[4]) for line in words) == found["received"]
        assert sum(int(line[5]) for line in words) == found["sent"]


def test_counts_survive_their_workers(folder: Path) -> None:
    with serving(folder) as server:
        kept = [connect(server.port) for _ in range(10)]
        before = totals(folder)
        assert before["open"] == 10
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        for sock in kept:
            end(sock)
        wait_until(lambda: closed(folder).get("worker_died") == 10)
        connect(server.port).close()
        wait_until(lambda: totals(folder)["open"] == 0)
        after = totals(folder)
        assert after["accepted"] == 11
        assert after["received"] == before["received"] + 6
        told = status(folder)
        assert [slot["restarts"] for slot in told["slots"]] == [1, 1]
        assert all("signal 9" in slot["last_exit"] for slot in told["slots"])


@pytest.mark.slow
def test_what_a_drain_aborts_is_not_counted_as_a_death(folder: Path) -> None:
    """Also if the handler swallows its cancellation, so that the worker ends with it."""
    with serving(folder, "--reload-drain-timeout", "0.1", workers=1) as server:
        for line in (b"hello\n", b"stay\n"):
            sock = connect(server.port, line)
            assert line == b"hello\n" or sock.recv(100) == line
            wait_until(lambda: totals(folder)["open"] == 1)
            os.kill(server.pid, signal.SIGHUP)
            end(sock)
            wait_until(lambda: totals(folder)["open"] == 0 and len(status(folder)["workers"]) == 1)
        assert closed(folder) == {"drain": 2}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_callback_of_a_protocol_that_fails_is_a_failure(folder: Path, loop: str) -> None:
    with run_server(
        "service:Echo", "-w", "1", "--loop", loop, "--control", str(folder / "control"), cwd=folder
    ) as server:
        end(connect(server.port, b"fail\n"))
        wait_until(lambda: closed(folder) == {"handler_failed": 1})
        assert totals(folder)["handler_failures"] == 1
        connect(server.port).close()
        wait_until(lambda: closed(folder) == {"handler_failed": 1, "done": 1})
        assert "as asked" in server.stderr()


def test_a_protocol_has_the_same_account(folder: Path) -> None:
    options = ("-w", "1", "--idle-timeout", "0.3", "--control", str(folder / "control"))
    with run_server("service:Echo", *options, cwd=folder) as server:
        connect(server.port).close()
        wait_until(lambda: closed(folder) == {"done": 1})
        reset(connect(server.port))
        wait_until(lambda: closed(folder) == {"done": 1, "peer_reset": 1})
        end(connect(server.port))
        wait_until(lambda: closed(folder) == {"done": 1, "peer_reset": 1, "idle_timeout": 1})
        found = totals(folder)
        # What a peer has not acknowledged at the end is not counted.
        assert (found["received"], 12 <= found["sent"] <= 18) == (18, True)


def keys(value: object) -> set[str]:
    """Return all keys of plain values, at any depth."""
    if isinstance(value, dict):
        return set(value).union(*(keys(each) for each in value.values()))
    return set().union(*(keys(each) for each in value)) if isinstance(value, list) else set()


def test_every_key_of_the_status_is_documented(folder: Path) -> None:
    with serving(folder) as server:
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        wait_until(lambda: any(slot["last_exit"] for slot in status(folder)["slots"]))
        (folder / "service.py").write_text("broken")
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: status(folder)["reloads"]["failed"] == 1)
        page = (ROOT / "docs" / "status.md").read_text()
        assert [key for key in sorted(keys(status(folder))) if f"`{key}`" not in page] == []


@pytest.mark.slow
@pytest.mark.parametrize("handler", ["greets", "echoes", "Echoes"])
def test_a_connection_is_silent_only_if_no_byte_went_either_way(tmp_path: Path, handler: str) -> None:
    (tmp_path / "service.py").write_text(
        "import asyncio\n"
        "async def greets(stream):\n    await stream.send(b'hello')\n    await stream.read(1)\n"
        "async def echoes(stream):\n    async for line in stream:\n        stream.write(line)\n"
        "class Echoes(asyncio.Protocol):\n"
        "    def connection_made(self, transport):\n        self.transport = transport\n"
        "    def data_received(self, data):\n        self.transport.write(data)\n"
    )
    control = ("--control", str(tmp_path / "control"))
    with run_server(f"service:{handler}", "-w", "1", *control, cwd=tmp_path) as server:
        for send in (b"", b"", b"one\n"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
                sock.sendall(send)
                if send:
                    sock.recv(16)
        wait_until(lambda: sum(status(tmp_path)["totals"]["closed"].values()) == 3)
        assert status(tmp_path)["totals"]["silent"] == (0 if handler == "greets" else 2)
