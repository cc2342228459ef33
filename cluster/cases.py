"""The cases: what is done to a host under load, and what may be lost of it.

Every case is a row of the table `CASES`; `play.py` runs them. How a host is operated is in `host.py`.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass

from soak import proc
from soak.servers import has_option

from .balancer import Balancer
from .host import Host

#: Seconds in which balancers look elsewhere, before a host that is told to stop does so: four checks.
DRAIN_DELAY = "2"
#: Seconds of a cut that TCP makes good, and of one that clients do not wait for.
SHORT_CUT, LONG_CUT = 3.0, 14.0


class May(enum.Enum):
    """What a case may lose."""

    NOTHING = enum.auto()
    OWN = enum.auto()
    """Connections of the host that it is done to."""
    MUST = enum.auto()
    """The same, and some of them have to be seen lost: a control of the harness."""
    MUST_ANY = enum.auto()
    """Some have to be seen lost, because no host took them."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is done, behind which balancer, and what may be lost."""

    what: str
    event: Callable[[Balancer, Host], float]
    """Does it, and returns when it was done, in seconds of the epoch: what is lost later is not the host's."""
    may: May = May.NOTHING
    balancer: str = "haproxy"
    readiness: bool = True
    agent: bool = False
    delay: str = ""
    """The hosts' `--drain-delay`, or "" for none."""
    patience: float = 30.0
    """Seconds that clients wait for an answer."""
    proxy: bool = True
    """Whether the balancer tells the hosts the true peer."""
    times: int = 1
    """How many times as often as other cases it is done, because it is soon over."""
    retry: bool = False
    """Whether the balancer tries another host for a connection that one did not take."""

    def missing(self) -> list[str]:
        """Return the options that this version of prefork lacks for it."""
        needed = {"--drain-delay": bool(self.delay), "--agent": self.agent, "--proxy-protocol": self.proxy}
        return [name for name, wanted in needed.items() if wanted and not has_option(name)]


def drain(balancer: Balancer, host: Host) -> float:
    """Stop prefork on the host by `prefork stop`; then start it again."""
    host.drain()
    over = time.time()
    host.boot()
    return over


def reload(balancer: Balancer, host: Host) -> float:
    """Send SIGHUP to the supervisor."""
    host.reload()
    return time.time()


def upgrade(balancer: Balancer, host: Host) -> float:
    """Send SIGUSR2 to the supervisor."""
    host.upgrade()
    return time.time()


def kill(balancer: Balancer, host: Host) -> float:
    """Kill all processes of the host; start it again when the balancer has noticed."""
    host.kill()
    over = time.time()
    proc.wait_until(lambda: not balancer.takes(host), 30, f"{balancer.program} without {host.name}", 0.02)
    host.boot()
    return over


def cut_briefly(balancer: Balancer, host: Host) -> float:
    """Take the host's wire out for `SHORT_CUT` seconds."""
    return _cut(balancer, host, SHORT_CUT)


def cut_long(balancer: Balancer, host: Host) -> float:
    """Take the host's wire out for longer than clients wait."""
    return _cut(balancer, host, LONG_CUT)


def _cut(balancer: Balancer, host: Host, seconds: float) -> float:
    host.node.cut()
    try:
        # The length of the cut is what is tested.
        time.sleep(seconds)
        proc.wait_until(lambda: not balancer.takes(host), 30, f"{balancer.program} without {host.name}", 0.02)
    finally:
        host.node.mend()
    return time.time()


CASES = {
    "control-kill": Case(
        "control: a host is stopped by SIGKILL, and the balancer tells no host the true peer: its connections have to "
        "be seen lost, and every peer wrong",
        kill,
        May.MUST,
        proxy=False,
        retry=True,
    ),
    "control-refuse": Case(
        "control: a host stops without --drain-delay, a balancer that has not noticed does not retry; some have to be "
        "seen lost",
        drain,
        May.MUST_ANY,
    ),
    "drain-agent": Case(
        "prefork stop with --drain-delay; HAProxy asks only the agent, and does not retry",
        drain,
        readiness=False,
        agent=True,
        delay=DRAIN_DELAY,
    ),
    "drain-readyz": Case(
        "prefork stop with --drain-delay; HAProxy asks only /readyz, and does not retry", drain, delay=DRAIN_DELAY
    ),
    "drain-auto": Case(
        "prefork stop with --drain-delay auto; HAProxy asks only /readyz, and does not retry", drain, delay="auto"
    ),
    "drain-retry": Case(
        "prefork stop without --drain-delay; HAProxy asks /readyz, and retries at another host",
        drain,
        retry=True,
    ),
    "reload": Case("SIGHUP; HAProxy does not retry", reload, times=3),
    "upgrade": Case("SIGUSR2; HAProxy does not retry", upgrade),
    "kill": Case("all processes of a host are killed; HAProxy retries at another host", kill, May.OWN, retry=True),
    "cut": Case(
        f"the host's wire is out for {SHORT_CUT:g} s; HAProxy retries at another host", cut_briefly, retry=True
    ),
    "cut-long": Case(
        f"the host's wire is out for {LONG_CUT:g} s, longer than clients wait; HAProxy retries at another host",
        cut_long,
        May.OWN,
        patience=LONG_CUT / 2,
        retry=True,
    ),
    "nginx-drain": Case(
        "prefork stop; nginx learns by trying, and retries at another host", drain, balancer="nginx", retry=True
    ),
    "nginx-reload": Case("SIGHUP; nginx does not retry", reload, balancer="nginx", times=3),
    "nginx-upgrade": Case("SIGUSR2; nginx does not retry", upgrade, balancer="nginx"),
}
