"""The address of --agent: hostile clients, an upgrade, and what it needs to be served at all."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers.agents import agent_port, ask_agent
from helpers.proc import children, gone
from helpers.servers import ECHO, command, serving, upgrade
from helpers.support import wait_until

from prefork.exporter.agent import MAX_CLIENTS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(ECHO)
    return tmp_path


def test_agent_checks_need_no_package_of_metrics() -> None:
    code = "import sys, prefork.exporter.__main__ as it; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.slow
def test_whatever_a_client_does_the_others_are_answered(folder: Path) -> None:
    with serving(folder, "--agent", ":0", workers=1) as server, contextlib.ExitStack() as stack:
        port = agent_port(server)
        for send in (b"", b"be_app\n", b"\0" * 100_000, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
            # What it does not read may end in a reset, which HAProxy does not see because it sends little.
            with contextlib.suppress(ConnectionResetError):
                assert ask_agent(port, send) == "up ready 100%\n"
        for _ in range(2 * MAX_CLIENTS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        assert ask_agent(port) == "up ready 100%\n"
        assert command(folder, "suspend").returncode == 0
        wait_until(lambda: ask_agent(port) == "drain\n")
        assert command(folder, "resume").returncode == 0
        wait_until(lambda: ask_agent(port) == "up ready 100%\n")
        server.signal(signal.SIGSTOP)
        try:
            # HAProxy keeps what it was told last.
            assert ask_agent(port) == ""
        finally:
            server.signal(signal.SIGCONT)
        exporter = next(pid for pid in children(server.pid) if pid not in server.worker_pids())
        os.kill(exporter, signal.SIGKILL)
        assert ask_agent(port) == "up ready 100%\n"
        assert "--agent: not served: its process died" in server.stderr()


@pytest.mark.slow
def test_an_upgrade_is_no_drain(folder: Path) -> None:
    with serving(folder, "--agent", "127.0.0.1:0", "--drain-delay", "60", workers=1) as server:
        port, told, done = agent_port(server), set[str](), threading.Event()

        def check() -> None:
            while not done.wait(0.02):
                told.add(ask_agent(port))

        checks = threading.Thread(target=check)
        checks.start()
        try:
            successor = upgrade(folder)
            # Its old workers are no lame ducks.
            wait_until(lambda: gone(server.pid))
        finally:
            done.set()
            checks.join()
            os.kill(successor, signal.SIGKILL)
        assert "up ready 100%\n" in told
        assert "drain\n" not in told
