"""The stage of every case: the network, the hosts on it, the balancer in front of them, and the clients.

What is done on it is decided in `play.py` and `cost.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from soak import proc
from soak.attempt import Target
from soak.load import Clients, Mix, Plan, clients
from soak.scenario import Context

from .balancer import Balancer, folder_in
from .cases import Case
from .haproxy import HAProxy, Setup
from .host import AGENT, Host
from .network import Network, Node
from .nginx import Nginx

HOSTS = 3
WORKERS = 2
_ADDRESS = "10.77.0.{}"
#: Long enough for every connection of the load to end by itself.
DRAIN_TIMEOUT = 60
#: Seconds until a host that is brought back, or has just begun, has to answer.
DEADLINE = 60.0
MIX = Mix(short=0.85, long=0.12, idle=0.03)


class Stage:
    """The machines, made once for all cases."""

    def __init__(self, context: Context, net: Network) -> None:
        self.context = context
        self._clients = net.node("clients", _ADDRESS.format(1))
        self._balancer = net.node("balancer", _ADDRESS.format(2))
        self._nodes = [net.node(f"host{number}", _ADDRESS.format(10 + number)) for number in range(1, HOSTS + 1)]

    @contextlib.contextmanager
    def hosts(self, case: Case, count: int = HOSTS) -> Iterator[list[Host]]:
        """Have this many hosts ready, with what the case asks of them; at the end of the block none runs."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(folder_in(self.context.folder))
            found = []
            for number, node in enumerate(self._nodes[:count], 1):
                host = Host(number, node, folder / node.name, self._options(case, node), WORKERS)
                stack.callback(host.kill)
                host.start()
                found.append(host)
            for host in found:
                host.wait_ready()
            yield found

    def _options(self, case: Case, node: Node) -> list[str]:
        options = ["--drain-timeout", str(DRAIN_TIMEOUT)]
        if case.delay:
            options += ["--drain-delay", case.delay]
        if case.agent:
            options += ["--agent", f"{node.address}:{AGENT}"]
        if case.proxy:
            options += ["--proxy-protocol", "any", "--proxy-from", f"{self._balancer.address}/32"]
        return options

    @contextlib.contextmanager
    def balancer(self, case: Case, hosts: Sequence[Host]) -> Iterator[Balancer]:
        """Have the case's balancer in front of the hosts, which it takes; it is gone at the end of the block."""
        with folder_in(self.context.folder) as folder, self._make(case, hosts, folder).running() as balancer:
            yield balancer

    def _make(self, case: Case, hosts: Sequence[Host], folder: Path) -> Balancer:
        if case.balancer == "nginx":
            return Nginx(self._balancer, hosts, folder, proxy=case.proxy, retry=case.retry)
        # The first attempt again at the same host would be no other host's: with three, each has had its turn.
        setup = Setup(case.readiness, case.agent, case.proxy, HOSTS if case.retry else 0)
        return HAProxy(self._balancer, hosts, folder, setup)

    @contextlib.contextmanager
    def load(self, balancer: Balancer, rate: float, patience: float = 30.0) -> Iterator[Clients]:
        """Have clients at work, `rate` connections a second, which wait `patience` seconds for an answer."""
        mix = Mix(MIX.short, MIX.long, MIX.idle, self.context.stay)
        targets = ((1.0, Target(balancer.address)),)
        plan = Plan(targets, rate, self.context.seed * 1000, mix, read_timeout=patience)
        with clients([plan], self._clients.prefix, "cluster.client") as load:
            wait_answers(load, balancer.hosts, 1)
            yield load


def answers(load: Clients, host: Host) -> int:
    """Return how many connections a host has been the first to answer, as of a moment ago."""
    load.listen()
    return sum(int(last.get("hosts", {}).get(str(host.number), 0)) for last in load.last)


def wait_answers(load: Clients, hosts: Sequence[Host], count: int) -> None:
    """Wait until each of the hosts has answered `count` connections more. Raises HarnessError."""
    before = {host.number: answers(load, host) for host in hosts}
    proc.wait_until(
        lambda: all(answers(load, host) >= before[host.number] + count for host in hosts),
        DEADLINE,
        f"{count} connections answered by {', '.join(host.name for host in hosts)}",
        0.05,
    )
