"""HAProxy in front of the hosts: its configuration, its word on each server, and its log.

As the configuration manual of HAProxy 2.6 has it.
"""

from __future__ import annotations

import csv
import re
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .balancer import Balancer
from .host import AGENT, METRICS, PORT, Host
from .losses import Passage
from .network import Node

#: Milliseconds between two checks of a host.
INTERVAL = 500
#: What it logs of each connection: the client's port, the server, how it ended, milliseconds to connect (-1: never),
#: retries, and when it began.
_FORMAT = "passage %cp %s %ts %Tc %rc %Ts.%ms"
_CONFIGURATION = """\
global
    log stdout format raw local0
    stats socket {socket} mode 600 level admin
    maxconn 4000
    nbthread 1

defaults
    mode tcp
    log global
    log-format "{format}"
    timeout connect 1s
    timeout client 120s
    timeout server 120s
    timeout client-fin 5s
    timeout server-fin 5s
    timeout check 1s
    retries {retries}
    option redispatch 1

listen echo
    bind {address}:{port}
    balance roundrobin
{readiness}{servers}
"""
#: How it logs that a check has failed, and why.
_DOWN = re.compile(r"^Server echo/host\d+ is DOWN, reason: ([^,.]*)", re.MULTILINE)
_READINESS = "    option httpchk GET /readyz\n    http-check expect status 200\n"


@dataclass(frozen=True, slots=True)
class Setup:
    """How it looks after the hosts. `retries` is what it gives a connection that no host took at the first attempt."""

    readiness: bool = True
    agent: bool = False
    proxy: bool = False
    retries: int = 0


class HAProxy(Balancer):
    program = "haproxy"

    def __init__(self, node: Node, hosts: Sequence[Host], folder: Path, setup: Setup) -> None:
        super().__init__(node, hosts, folder)
        self._setup = setup
        self._socket = folder / "stats.sock"

    def command(self) -> list[str]:
        """Write its configuration; return its command."""
        path = self.folder / "haproxy.cfg"
        path.write_text(
            _CONFIGURATION.format(
                socket=self._socket,
                format=_FORMAT,
                retries=self._setup.retries,
                address=self.node.address,
                port=PORT,
                readiness=_READINESS if self._setup.readiness else "",
                servers="\n".join(map(self._server, self.hosts)),
            )
        )
        return [self.program, "-db", "-f", str(path)]

    def _server(self, host: Host) -> str:
        setup, address = self._setup, host.node.address
        words = [f"    server {host.name} {address}:{PORT}"]
        words += ["send-proxy-v2"] if setup.proxy else []
        words += [f"check port {METRICS} inter {INTERVAL} fall 1 rise 1"]
        words += [f"agent-check agent-port {AGENT} agent-inter {INTERVAL}"] if setup.agent else []
        return " ".join(words)

    def takes(self, host: Host) -> bool:
        """Return whether its status for a host is UP and nothing else, such as DRAIN, and its checks have said so."""
        found = self.statistics().get(host.name, {})
        # Until its first check it believes in every host.
        checks = ["check_status", *(["agent_status"] if self._setup.agent else [])]
        return found.get("status") == "UP" and all(found[check].endswith("OK") for check in checks)

    def noted(self) -> str:
        """Return how often a host was marked down since all were taken, and why."""
        reasons = Counter(_DOWN.findall(self.log.read_text(errors="replace")[self._taken :]))
        return ", ".join(f"{count} times down ({reason})" for reason, count in reasons.items()) or "never down"

    def statistics(self) -> dict[str, dict[str, str]]:
        """Return the columns of `show stat` for each server; none before its socket is there."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            try:
                sock.connect(str(self._socket))
            except (FileNotFoundError, ConnectionRefusedError):
                return {}
            sock.sendall(b"show stat\n")
            text = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        return {row["svname"]: row for row in csv.DictReader(text.lstrip("# ").splitlines())}

    def passages(self) -> list[Passage]:
        """Return the connections of its log."""
        return parse(self.log.read_text(errors="replace"))


def parse(text: str) -> list[Passage]:
    """Return the passages of a log in `_FORMAT`; other lines are left out."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) != 7 or words[0] != "passage":
            continue
        _, port, server, how, connect, retries, began = words
        number = int(server.removeprefix("host")) if server.startswith("host") else 0
        # A sign before the number says that the last attempt went to another server.
        found.append(Passage(int(port), number, int(connect) >= 0, int(retries.lstrip("+")), how, float(began)))
    return found
