"""A stop behind a balancer that notices late: with --drain-delay it refuses nothing, and all are told at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.agents import agent_port, ask_agent
from helpers.scraping import get, metrics_port
from helpers.servers import ECHO, answer, asking, command, serving, state, status
from helpers.support import wait_until

from prefork.testing import Server, run_program, run_server

#: Seconds from the answer that no new connections are wanted until a balancer has acted on it.
NOTICES_AFTER = 0.7
#: Seconds between two connections of the balancer.
PAUSE = 0.02


class Balancer(threading.Thread):
    """Connects, echoes one line and closes, until it has known for NOTICES_AFTER that the server is `unready`."""

    def __init__(self, server: Server, unready: Callable[[], bool]) -> None:
        super().__init__()
        self._port = server.port
        self._unready = unready
        self.served = self.refused = 0
        self._ends_at = time.monotonic() + 30

    def run(self) -> None:
        noticed = False
        while time.monotonic() < self._ends_at:
            try:
                self._echo()
                self.served += 1
            except OSError:
                self.refused += 1
            if not noticed and self._unready():
                noticed, self._ends_at = True, time.monotonic() + NOTICES_AFTER
            time.sleep(PAUSE)

    def _echo(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=10) as sock:
            sock.sendall(b"one\n")
            if sock.recv(16) != b"one\n":
                raise OSError("cut off")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(ECHO)
    return tmp_path


def test_a_balancer_that_notices_late_is_never_refused(folder: Path) -> None:
    options = ("--drain-delay", "2.5", "--metrics", "127.0.0.1:0", "--agent", "127.0.0.1:0")
    with serving(folder, *options) as server:
        metrics, agent = metrics_port(server), agent_port(server)
        assert ask_agent(agent) == "up ready 100%\n"
        balancer = Balancer(server, lambda: ask_agent(agent) == "drain\n")
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as old, old.makefile("rb") as file:
            old.sendall(b"before\n")
            assert file.readline() == b"before\n"
            idle = next(each["pid"] for each in status(folder)["workers"] if not each["open"])
            balancer.start()
            server.signal(signal.SIGTERM)
            wait_until(lambda: state(folder) == "lame_duck")
            assert ask_agent(agent, b"agent-send\n") == "drain\n"
            code, _, body = get(metrics, "/readyz")
            assert (code, b"lame duck" in body) == (503, True)
            assert get(metrics, "/healthz")[0] == 200
            for request in ({"command": "reload"}, {"command": "upgrade"}, {"command": "scale", "workers": 3}):
                reply = answer(asking(folder, request))
                assert "lame duck (--drain-delay)" in reply["error"]
            os.kill(idle, signal.SIGKILL)
            wait_until(lambda: "restarting" in server.stderr())
            balancer.join()
            wait_until(lambda: state(folder) == "stopping")
            assert ask_agent(agent) == "drain\n", "the agent is there until the end"
            assert get(metrics, "/readyz")[0] == 503
            old.sendall(b"after\n")
            assert file.readline() == b"after\n"
        assert server.wait() == 0
        # The one that was just being served by the worker that died was cut off.
        assert balancer.refused <= 1
        assert balancer.served > 10


def test_without_a_delay_the_same_balancer_is_refused(folder: Path) -> None:
    """The control of the test above."""
    with serving(folder, "--agent", "127.0.0.1:0") as server:
        agent = agent_port(server)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as old:
            old.sendall(b"one\n")
            balancer = Balancer(server, lambda: ask_agent(agent) == "drain\n")
            balancer.start()
            wait_until(lambda: balancer.served > 10)
            server.signal(signal.SIGTERM)
            balancer.join()
        assert server.wait() == 0
        assert balancer.refused > 10


@pytest.mark.slow
def test_stop_tells_how_long_it_takes_and_a_second_signal_does_not_wait(folder: Path) -> None:
    with serving(folder, "--drain-delay", "1.5") as server:
        done = command(folder, "stop")
        assert (done.returncode, server.wait()) == (0, 0)
        assert "lame duck (control socket): new connections are accepted for 1.5 s more" in server.stderr()
    with serving(folder, "--drain-delay", "60") as server:
        server.signal(signal.SIGTERM)
        wait_until(lambda: state(folder) == "lame_duck")
        assert 50 < status(folder)["drains_in"] <= 60
        title = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert b"lame duck for 60 s" in title
        server.signal(signal.SIGTERM)
        assert server.wait(10) == 0


PROGRAM = """
import asyncio

async def handle(reader, writer):
    while line := await reader.readline():
        writer.write(line)
    writer.close()

async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    await server.serve_forever()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["service", "program"])
def test_auto_waits_for_connections_and_not_for_health_checks(tmp_path: Path, kind: str) -> None:
    (tmp_path / "service.py").write_text(ECHO)
    (tmp_path / "program.py").write_text(PROGRAM)
    options = ("--drain-delay", "auto", "-w", "2")
    running = (
        run_server("service:handle", *options, cwd=tmp_path)
        if kind == "service"
        else run_program("program.py", options=options, cwd=tmp_path)
    )
    with running as server:
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        last = 0.0
        while server._process.poll() is None:
            now = time.monotonic() - began
            assert now < 20, "it waits for the checks"
            # A check, which sends nothing, four times a second until the end; and clients for two seconds.
            try:
                with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
                    if now < 2.0:
                        sock.sendall(b"one\n")
                        assert sock.recv(16) == b"one\n"
                        last = now
            except OSError:
                break
            time.sleep(0.25)
        lasted = time.monotonic() - began
        assert server.wait() == 0
        assert lasted >= last + 2.9
