"""What every scenario is given, and what they have in common: sizes, load, and hearing the witnesses.

A scenario is a function from a `Context` to rows. Which there are is said in `scenarios/__init__.py`.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prefork.cli.progress import ProgressLine

from . import kernel, tally
from .attempt import Script, Target
from .client import Pump
from .ledger import Ledger
from .load import Clients, Mix, clients, plans
from .report import Row
from .servers import Certificates, Fleet, make_certificates
from .witnesses import Testimony, compare


@dataclass
class Context:
    """`scale` multiplies every count, `rate` is connections a second of all clients together, `stay` the seconds
    that long and idle connections last on average, at the most; `seed` is for all dice."""

    folder: Path
    scale: float = 1.0
    rate: float = 2500.0
    processes: int = 2
    seed: int = 1
    stay: float = 4.0
    quiet: bool = False
    name: str = "soak"
    """The harness that it is of, in front of each line."""
    _certificates: Certificates | None = field(default=None)
    _progress: tuple[int, int, str] | None = field(default=None)
    _line: ProgressLine = field(default_factory=ProgressLine)

    def count(self, full: int, least: int = 1) -> int:
        """How many of something, of which there are `full` at scale 1."""
        return max(least, round(full * self.scale))

    def seconds(self, full: float, least: float = 1.0) -> float:
        """The same for a duration."""
        return max(least, full * self.scale)

    def dice(self, purpose: str) -> random.Random:
        """Dice that fall the same each time, and differently for each purpose."""
        return random.Random(f"{self.seed} {purpose}")

    def certificates(self) -> Certificates:
        """Return the certificates for TLS, made once."""
        if self._certificates is None:
            self._certificates = make_certificates(self.folder)
        return self._certificates

    def say(self, text: str) -> None:
        """Write a line to standard error, above that of the progress."""
        if not self.quiet:
            self._line.close()
            sys.stderr.write(f"{self.name}: {time.strftime('%H:%M:%S')} {text}\n")
            sys.stderr.flush()
            self._show()

    def progress(self, done: int, total: int, name: str) -> None:
        """Note that `done` of `total` scenarios are done, and the name of the next one; a terminal shows a bar."""
        self._progress = (done, total, name)
        self._show()

    def _show(self) -> None:
        if self._progress is not None and not self.quiet and sys.stderr.isatty():
            self._line.update(*self._progress)

    def close(self) -> None:
        """End the line of the progress."""
        self._line.close()


Scenario = Callable[[Context], list[Row]]


@contextlib.contextmanager
def loaded(
    context: Context, targets: Sequence[tuple[float, Target]], stay: float = 4.0, rate: float | None = None
) -> Iterator[Clients]:
    """Client processes at work on `targets`; long and idle connections last `stay` seconds at most."""
    authority = context.certificates().authority if any(target.tls for _, target in targets) else ""
    with clients(
        plans(
            context.processes,
            targets,
            context.rate if rate is None else rate,
            context.seed * 1000,
            authority=authority,
            mix=Mix(stay=min(stay, context.stay)),
        )
    ) as running:
        yield running


def hear(ledger: Ledger, fleets: Sequence[Fleet], before: kernel.Counters) -> Testimony:
    """Hear the witnesses, once no connection is open any more. Draining workers may still be there."""
    accepted: dict[int, int] = {}
    handled: dict[int, int] = {}
    counts = tally.Counts()
    for fleet in fleets:
        fleet.wait_idle()
        accepted |= {int(each["pid"]): int(each["accepted"]) for each in fleet.status()["workers"]}
        handled |= {pid: each.handled for pid, each in tally.read(fleet.tallies).items()}
        counts = counts + fleet.tally()
    return compare(ledger, counts, kernel.since(before), accepted, handled)


def by_hand(ledger: Ledger, read_timeout: float = 30.0) -> contextlib.closing[Pump]:
    """A pump in this process, for scenarios that have every connection in hand."""
    return contextlib.closing(Pump(ledger, read_timeout=read_timeout))


#: One small request, sent at once.
QUESTION = Script("short", ((0.0, 64),))
