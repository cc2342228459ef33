"""HAProxy's agent check against --agent: a stop drains the server there and loses nothing, the next start takes it
back."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
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
    retries 0
listen front
    bind 127.0.0.1:{port}
    balance roundrobin
"""
#: Without retries, so that a client sees each connection that a server refuses.
SERVER = """  server {name} 127.0.0.1:{port} check inter 5s agent-check agent-port {agent} agent-inter 300ms weight 100
"""
#: Names of servers, and the port and the port of --agent of each.
Servers = Mapping[str, tuple[int, int]]


class HAProxy:
    """A HAProxy that listens on `port`."""

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
        """Return what it knows of its first server."""
        _, names, values = self.ask("show servers state front").splitlines()[:3]
        return dict(zip(names.removeprefix("# ").split(), values.split(), strict=False))

    def drains(self) -> bool:
        """Return whether its first server gets no new connections."""
        return bool(int(self.server()["srv_admin_state"]) & _FORCED_DRAIN)

    def echoes(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            sock.sendall(b"one\n")
            return sock.recv(16) == b"one\n"
        return False


@contextlib.contextmanager
def haproxy(folder: Path, servers: Servers) -> Iterator[HAProxy]:
    need("haproxy", "socat")
    port = free_port()
    file = folder / "haproxy.cfg"
    lines = [SERVER.format(name=name, port=at, agent=agent) for name, (at, agent) in servers.items()]
    file.write_text(CONFIG.format(folder=folder, port=port) + "".join(lines))
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
    with haproxy(tmp_path, {"one": (one, agent)}) as balancer:
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
        haproxy(tmp_path, {"one": (one, agent)}) as balancer,
        serving(tmp_path, *options, bind=f"127.0.0.1:{one}"),
        contextlib.ExitStack() as stack,
    ):
        wait_until(balancer.echoes)
        wait_until(lambda: int(balancer.server()["srv_uweight"]) == 100)
        for _ in range(19):
            stack.enter_context(socket.create_connection(("127.0.0.1", one), timeout=20))
        wait_until(lambda: 1 <= int(balancer.server()["srv_uweight"]) <= 50, 40)
        stack.close()
        wait_until(lambda: int(balancer.server()["srv_uweight"]) == 100, 40)


@pytest.mark.slow
@pytest.mark.parametrize("delay", ["2", "auto", "0"])
def test_a_stop_behind_haproxy_loses_no_connection(tmp_path: Path, delay: str) -> None:
    """Without a delay it loses some: the control."""
    servers: list[Path] = []
    for name in ("one", "two"):
        servers.append(tmp_path / name)
        servers[-1].mkdir()
        (servers[-1] / "service.py").write_text(ECHO)
    options = ("--agent", "127.0.0.1:0", "--drain-delay", delay)
    with serving(servers[0], *options, workers=1) as one, serving(servers[1], *options, workers=1) as two:
        ports = {"one": (one.port, agent_port(one)), "two": (two.port, agent_port(two))}
        with haproxy(tmp_path, ports) as balancer:
            wait_until(balancer.echoes)
            one.signal(signal.SIGTERM)
            served = lost = 0
            ends_at = time.monotonic() + 30
            while time.monotonic() < ends_at:
                if balancer.echoes():
                    served += 1
                else:
                    lost += 1
                if one._process.poll() is not None:
                    # And for a moment longer, because a balancer that has not noticed would lose some only now.
                    ends_at = min(ends_at, time.monotonic() + 0.2)
                time.sleep(0.01)
            assert one.wait() == 0
    assert (lost > 0) is (delay == "0"), f"{lost} lost of {served + lost}"
