"""What a connection costs one, two and three hosts that each have the same load: the processor time of their processes.

Two processors cannot show the throughput of three hosts; their accounting can.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from soak.report import Row, Verdict
from soak.tally import Counts

from .cases import Case, reload
from .stage import HOSTS, Stage, wait_answers

NAME = "cost"
WHAT = "processor time of a connection with one, two and three hosts, each with the same load"
#: Measurements of each number of hosts, in turn, at scale 1; and seconds of each.
ROUNDS = 5
SECONDS = 8.0
#: Connections that each host has answered before it is measured: cold, it pays for pages that it touches once.
WARM = 100
#: How much more than with one host a connection may cost.
LIMIT = 1.15
#: HAProxy with /readyz, and nothing done to any host.
_CASE = Case("nothing is done", reload)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of processor time for a connection, of the hosts and of the balancer; and how many there were."""

    hosts: float
    balancer: float
    connections: int
    exchanges: int


def play(stage: Stage) -> Row:
    """Measure, the numbers of hosts in turn. Raises HarnessError."""
    rounds = stage.context.count(ROUNDS)
    found: dict[int, list[Cost]] = {count: [] for count in range(1, HOSTS + 1)}
    for _ in range(rounds):
        for count, costs in found.items():
            costs.append(_measure(stage, count, max(2.0, min(SECONDS, SECONDS * stage.context.scale))))
    return judge(found)


def judge(found: dict[int, list[Cost]]) -> Row:
    """Return the row of all measurements."""
    cost = {count: statistics.median(each.hosts for each in costs) for count, costs in found.items()}
    balancer = statistics.median(each.balancer for costs in found.values() for each in costs)
    ratio = max(cost.values()) / cost[1]
    figure = ", ".join(f"{value * 1e6:.0f} µs with {count}" for count, value in cost.items())
    n = sum(each.connections for costs in found.values() for each in costs)
    verdict = Verdict.GOOD if ratio <= LIMIT else Verdict.BAD
    details = [
        f"{count} hosts: {', '.join(f'{each.hosts * 1e6:.0f}' for each in costs)} µs a connection; "
        f"{sum(each.connections for each in costs)} connections, {sum(each.exchanges for each in costs)} exchanges"
        for count, costs in found.items()
    ]
    details += [
        f"so one host of one processor takes {1 / cost[1]:.0f} such connections a second, {HOSTS} take "
        f"{HOSTS / cost[HOSTS]:.0f}",
        f"HAProxy uses {balancer * 1e6:.0f} µs for each, so one thread of it takes {1 / balancer:.0f}",
    ]
    return Row(NAME, WHAT, f"{figure}; {ratio:.2f} at most", n, f"<= {LIMIT}", verdict, "", tuple(details))


def _measure(stage: Stage, count: int, seconds: float) -> Cost:
    with stage.hosts(_CASE, count) as hosts, stage.balancer(_CASE, hosts) as balancer:

        def read() -> tuple[float, float, Counts]:
            counts = sum((host.counts() for host in hosts), Counts())
            return sum(host.processor_seconds() for host in hosts), balancer.processor_seconds(), counts

        with stage.load(balancer, stage.context.rate * count) as load:
            wait_answers(load, hosts, WARM)
            hosts_before, balancer_before, before = read()
            time.sleep(seconds)
            hosts_after, balancer_after, after = read()
            load.stop()
    connections = after.handled - before.handled
    return Cost(
        (hosts_after - hosts_before) / connections,
        (balancer_after - balancer_before) / connections,
        connections,
        after.exchanges - before.exchanges,
    )
