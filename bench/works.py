"""What is asked of the servers: the works, and how much of them a full and a quick run do.

Only numbers and names. How a work is measured is in `generator.py` and `rounds.py`, what it may cost in `targets.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
#: Connections that sit there, for the memory of each.
IDLE = 9000


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work. Its unit is an exchange: a message and its echo, over an open connection or one of its own."""

    name: str
    title: str
    size: int
    """Bytes of a message, or of each of its lines."""
    connections: int
    """How many are open, or being opened, at a time. Each has one exchange on its way: a closed loop."""
    lines: int = 0
    """Lines that are sent at once and make one exchange; 0: the message has none."""
    closing: bool = False
    """A connection for each exchange."""
    tls: str = ""
    """The version, `1.2` or `1.3`, or "" for none."""
    http: bool = False
    """A GET by HTTP/1.1 and its answer instead of an echo; `size` and `lines` do not count."""
    reset: bool = False
    """The client ends each connection with a reset."""
    resume: bool = False
    """Each connection offers the TLS session of the one before."""
    headline: bool = False
    """Measured longer than the rest: a target hangs on it."""
    slow: bool = False
    """Measured twice as long: a few thousand of these take a second."""

    @property
    def handler(self) -> str:
        """Which of a contestant's handlers serves it."""
        return "lines" if self.lines else "echo"

    @property
    def server(self) -> tuple[str, bool]:
        """Handler, and whether by TLS: works that share it are served by the same process."""
        return self.handler, bool(self.tls)


def _size(size: int) -> str:
    if size % MIB == 0:
        return f"{size // MIB} MiB"
    return f"{size // KIB} KiB" if size % KIB == 0 else f"{size} B"


def _short(size: int) -> str:
    return _size(size).replace(" ", "").removesuffix("iB").removesuffix("B").lower()


def _count(connections: int) -> str:
    return "1 connection" if connections == 1 else f"{connections:,} connections"


def _echo(size: int, connections: int, tls: str = "", headline: bool = False) -> Work:
    prefix = f"TLS {tls} " if tls else ""
    name = f"{'tls' + tls + '-' if tls else ''}echo-{_short(size)}-{connections}"
    title = f"{prefix}echo {_size(size)}, {_count(connections)}"
    return Work(name, title, size, connections, tls=tls, headline=headline, slow=size == MIB or connections > 1000)


def _handshake(tls: str, resume: bool, headline: bool = False) -> Work:
    how = "resumed" if resume else "full"
    return Work(
        f"tls{tls}-handshake-{how}",
        f"TLS {tls} handshake, {how}",
        16,
        50,
        closing=True,
        tls=tls,
        resume=resume,
        headline=headline,
        slow=True,
    )


ECHO = _echo(1 * KIB, 50, headline=True)
ECHO_SMALL = _echo(64, 500, headline=True)
ECHO_MANY = _echo(1 * KIB, 5000, headline=True)
ECHO_HUGE = _echo(1 * MIB, 50, headline=True)
ECHO_HUGE_FEW = _echo(1 * MIB, 10, headline=True)
ECHO_HUGE_ALONE = _echo(1 * MIB, 1, headline=True)
LINES = Work("lines", "32 pipelined lines of 64 B, 50 connections", 64, 50, lines=32, headline=True)
CLOSE = Work("close", "connect, echo 16 B, close", 16, 50, closing=True, headline=True)
RESET = Work("reset", "connect, echo 16 B, reset by the client", 16, 50, closing=True, reset=True, headline=True)
TLS_ECHO = _echo(1 * KIB, 50, "1.3", headline=True)
TLS_BULK = _echo(64 * KIB, 50, "1.3", headline=True)
TLS_FULL = _handshake("1.3", resume=False, headline=True)
TLS_RESUMED = _handshake("1.3", resume=True, headline=True)

#: 1 MiB over 500 and 5,000 connections is left out: one message for each would take longer than the measurement.
_GRID = tuple(
    _echo(size, connections)
    for connections in (1, 50, 500, 5000)
    for size in (64, 1 * KIB, 16 * KIB, 1 * MIB)
    if not (size == MIB and connections > 50)
)
_ECHOES = {work.name: work for work in (ECHO, ECHO_SMALL, ECHO_MANY, ECHO_HUGE, ECHO_HUGE_ALONE)}

#: In the order in which a server does them: what might leave a mark on it, thousands of connections, comes last.
FULL = (
    *(_ECHOES.get(work.name, work) for work in _GRID),
    ECHO_HUGE_FEW,
    CLOSE,
    RESET,
    LINES,
    TLS_ECHO,
    TLS_BULK,
    _echo(1 * KIB, 50, "1.2"),
    _echo(64 * KIB, 50, "1.2"),
    TLS_FULL,
    TLS_RESUMED,
    _handshake("1.2", resume=False),
    _handshake("1.2", resume=True),
)
#: In the order of their importance, for the report.
HEADLINES = (
    ECHO,
    ECHO_SMALL,
    ECHO_MANY,
    LINES,
    CLOSE,
    RESET,
    ECHO_HUGE,
    ECHO_HUGE_FEW,
    ECHO_HUGE_ALONE,
    TLS_ECHO,
    TLS_BULK,
    TLS_FULL,
    TLS_RESUMED,
)
REPORTED = (*HEADLINES, *(work for work in FULL if not work.headline))
QUICK = (ECHO, ECHO_HUGE, CLOSE, LINES, TLS_ECHO, TLS_BULK, TLS_FULL)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done. Times in seconds."""

    works: tuple[Work, ...]
    rounds: int
    warm_up: float
    """Of each measurement; besides, a server that has been started opens and closes connections first."""
    seconds: float
    """Of a measurement of a work that has a target."""
    grid_seconds: float
    """Of the others."""
    fresh: bool
    """Whether each round has servers of its own, so that no process's luck (its addresses, its hash seed) decides."""
    idle: int
    """How many connections sit there for the memory of one."""
    redis_requests: int

    def seconds_for(self, work: Work) -> float:
        """The seconds of one measurement of `work`."""
        seconds = self.seconds if work.headline else self.grid_seconds
        return 2 * seconds if work.slow else seconds


FULL_SCALE = Scale(FULL, 5, 0.06, 0.3, 0.15, fresh=True, idle=IDLE, redis_requests=50_000)
QUICK_SCALE = Scale(QUICK, 3, 0.04, 0.1, 0.1, fresh=False, idle=2000, redis_requests=0)
