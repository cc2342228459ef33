"""Code on disk that dies at import, and workers killed so that it is tried: few forks, and the others serve on."""

from __future__ import annotations

import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import kernel, proc
from ..errors import HarnessError
from ..report import Row, Verdict, zero
from ..scenario import Context, hear, loaded
from ..servers import Fleet, serving

WORKERS = 4
#: Slots whose worker is killed, once.
VICTIMS = (0, 1)
SECONDS = 60.0
#: Forks of a slot in any such time.
TARGET = 10
PERIOD = 60.0

GOOD = "from soak.services.counted import service\n"
#: Says that it was forked, then dies: by an exception or at once, in turn.
BROKEN = """
import os, time
fd = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.write(fd, b"%d %d\\n" % (os.getpid(), time.monotonic_ns()))
if os.getpid() % 2:
    os._exit(1)
raise RuntimeError("the configuration is gone")
"""


def run(context: Context) -> list[Row]:
    """A minute of it, with a load on those that run."""
    seconds = context.seconds(SECONDS, 5.0)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        (folder / "app.py").write_text(GOOD)
        with serving("app:service", workers=WORKERS, unix=True, cwd=folder) as fleet:
            return _measure(context, fleet, folder, seconds)


def _measure(context: Context, fleet: Fleet, folder: Path, seconds: float) -> list[Row]:
    log = folder / "forks"
    fleet.wait_ready(WORKERS)
    (folder / "app.py").write_text(BROKEN.format(log=str(log)))
    spent, begun = proc.processor_seconds(fleet.pid), time.monotonic()
    victims = [int(each["pid"]) for each in fleet.status()["workers"] if each["slot"] in VICTIMS]
    for pid in victims:
        proc.kill_and_wait(pid)
    proc.wait_until(log.exists, 10, "a worker that imports the broken code")
    before = kernel.read()
    targets = [(1.0, target) for target in fleet.targets()]
    with loaded(context, targets, 2.0, context.rate / 4) as load:
        while time.monotonic() < begun + seconds:
            time.sleep(0.1)
            load.listen()
        share = (proc.processor_seconds(fleet.pid) - spent) / (time.monotonic() - begun)
        forks = _forks(log.read_text(), fleet.server.stderr())
        ledger, _ = load.stop()
    testimony = hear(ledger, [fleet], before)
    most = max(_most_in_a_period(times) for times in forks.values())
    counted = {slot: len(times) for slot, times in sorted(forks.items())}
    what = f"forks of a slot in {PERIOD:.0f} s (over {seconds:.0f} s), code that dies at import"
    return [
        Row(
            "crashloop",
            what,
            f"at most {most}",
            sum(counted.values()),
            f"<= {TARGET}",
            Verdict.GOOD if most <= TARGET and set(counted) == set(VICTIMS) else Verdict.BAD,
            details=(f"forks by slot: {counted}; the supervisor has had {share:.2%} of a processor",),
        ),
        zero(
            "crashloop",
            f"connections to the other {WORKERS - len(VICTIMS)} workers meanwhile",
            ledger.lost,
            ledger.attempts,
            "connections",
            [f"meanwhile: {line}" for line in testimony.all],
            testimony.agree,
        ),
    ]


def _forks(imports: str, log: str) -> Mapping[int, Sequence[float]]:
    """When each slot was forked, in seconds: what the broken code wrote, and the slots that the server's log names.

    Raises HarnessError if a worker died that never wrote, or wrote without being in the log: one of the two sources is
    wrong.
    """
    wrote = {int(pid): int(when) / 1e9 for pid, when in map(str.split, imports.splitlines())}
    died = {int(pid): int(slot) for slot, pid in re.findall(r"worker (\d+) \(pid (\d+)\) died: (?!signal 9)", log)}
    if unknown := set(died) - set(wrote):
        raise HarnessError(f"workers died that have not imported the broken code: {unknown}")
    # One may be dying at this moment.
    if len(set(wrote) - set(died)) > 2:
        raise HarnessError(f"workers that the log does not name: {set(wrote) - set(died)}")
    forks: dict[int, list[float]] = defaultdict(list)
    for pid, slot in died.items():
        forks[slot].append(wrote[pid])
    if not forks:
        raise HarnessError("no worker has died of the broken code")
    return forks


def _most_in_a_period(times: Sequence[float]) -> int:
    ordered = sorted(times)
    return max(sum(first <= each < first + PERIOD for each in ordered) for first in ordered)
