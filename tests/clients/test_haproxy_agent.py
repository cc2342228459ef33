"""HAProxy's agent check against --agent: a stop drains the server there, and the next start takes it back."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.agents import agent_port
from helpers.servers import ECHO, command, serving
from helpers.support import free_port, need, wait_until

#: Bits of srv_admin_state in HAProxy's management manual, `show servers state`: forced into drain.
_FORCED_DRAIN = 8

CONFIG = """
global
    stats socket {folder}/stats level admin
    log {folder}/nothing local0
defaults
    mode tcp
    timeout connect 2s
    timeout client 20s
    timeout server 20s
listen front
    bind 127.0.0.1:{port}
    balance leastconn
    option redispatch 1
    retries 2
    server one 127.0.0.1:{one} weight 100 check inter 100ms agent-check agent-port {agent} agent-inter 100ms
"""


class HAProxy:
    """A HAProxy with one server, that listens on `port`."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self.port = port

    def ask(self, request: str) -> str:
        """Return the answer of the stats socket."""
        done = subprocess.run(
            ["socat", "-t", "5", "-", f"UNIX-CONNECT:{self._folder}/stats"],
            input=f"{request}\n",
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.stdout

    def server(self) -> dict[str, str]:
        """Return what it knows of the server."""
        _, names, values = self.ask("show servers state front").splitlines()[:3]
        return dict(zip(names.removeprefix("# ").split(), values.split(), strict=False))

    def drains(self) -> bool:
        return bool(int(self.server()["srv_admin_state"]) & _FORCED_DRAIN)

    def echoes(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            sock.sendall(b"one\n")
            return sock.recv(16) == b"one\n"
        return False


@contextlib.contextmanager
def haproxy(folder: Path, one: int, agent: int) -> Iterator[HAProxy]:
    need("haproxy", "socat")
    port = free_port()
    file = folder / "haproxy.cfg"
    file.write_text(CONFIG.format(folder=folder, port=port, one=one, agent=agent))
    process = subprocess.Popen(["haproxy", "-db", "-f", str(file)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (folder / "stats").exists())
        yield HAProxy(folder, port)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_stop_drains_the_server_and_its_next_start_takes_that_back(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(ECHO)
    one, agent = free_port(), free_port()
    options = ("--drain-delay", "2", "--agent", f"127.0.0.1:{agent}")
    with haproxy(tmp_path, one, agent) as balancer:
        with serving(tmp_path, *options, bind=f"127.0.0.1:{one}") as server:
            assert agent_port(server) == agent
            wait_until(balancer.echoes)
            assert not balancer.drains()
            server.signal(signal.SIGTERM)
            wait_until(balancer.drains)
            # It sends nothing more, and what it has is served.
            assert server._process.poll() is None
            assert server.wait() == 0
        assert balancer.drains(), "a server that is gone changes nothing"
        with serving(tmp_path, *options, bind=f"127.0.0.1:{one}"):
            wait_until(lambda: not balancer.drains())
            wait_until(balancer.echoes)
            assert command(tmp_path, "suspend").returncode == 0
            wait_until(balancer.drains)
            assert command(tmp_path, "resume").returncode == 0
            wait_until(lambda: not balancer.drains())
            # What an operator sets at HAProxy is taken back too, unless the agent is disabled there.
            balancer.ask("set server front/one state drain")
            wait_until(lambda: not balancer.drains())
            balancer.ask("disable agent front/one")
            balancer.ask("set server front/one state drain")
            assert balancer.drains()


@pytest.mark.slow
def test_the_weight_falls_near_the_limit_of_connections(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(ECHO)
    one, agent = free_port(), free_port()
    options = ("--max-connections", "20", "--agent", f"127.0.0.1:{agent}")
    with (
        haproxy(tmp_path, one, agent) as balancer,
        serving(tmp_path, *options, bind=f"127.0.0.1:{one}"),
        contextlib.ExitStack() as stack,
    ):
        wait_until(balancer.echoes)
        wait_until(lambda: int(balancer.server()["srv_uweight"]) == 100)
        for _ in range(19):
            stack.enter_context(socket.create_connection(("127.0.0.1", one), timeout=20))
        wait_until(lambda: 1 <= int(balancer.server()["srv_uweight"]) <= 40)
        stack.close()
        wait_until(lambda: int(balancer.server()["srv_uweight"]) == 100)
