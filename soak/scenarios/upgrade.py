"""A supervisor starts its successor with the same sockets, under load, again and again; nothing is lost."""

from __future__ import annotations

import subprocess
import sys
import time

from .. import kernel, proc
from ..errors import HarnessError
from ..load import ROOT
from ..report import Row, absent, zero
from ..scenario import Context, hear, loaded
from ..servers import Fleet, has_command, serving

WORKERS = 4
UPGRADES = 50
COMMAND = "upgrade"
#: The maximum of seconds that a connection stays, so that the old supervisor soon ends.
STAY = 1.5
DEADLINE = 60.0


def run(context: Context) -> list[Row]:
    """Upgrade, wait until the successor serves and the predecessor has left, and again."""
    if not has_command(COMMAND):
        return [absent("upgrade", "another supervisor takes over under load", f"command {COMMAND}")]
    upgrades = context.count(UPGRADES, 2)
    pids: list[int] = []
    wrong: list[str] = []
    with serving(workers=WORKERS, unix=True) as fleet:
        targets = [(1.0, target) for target in fleet.targets()]
        before = kernel.read()
        with loaded(context, targets, STAY) as load:
            proc.wait_until(lambda: load.attempts, 30, "a first connection")
            for number in range(upgrades):
                pids.append(int(fleet.status()["pid"]))
                wrong += _upgrade(fleet, pids[-1])
                if (number + 1) % 10 == 0:
                    context.say(f"upgrade: {number + 1}, {load.attempts:,} connections, {len(wrong)} wrong")
            ledger, _ = load.stop()
        testimony = hear(ledger, [fleet], before)
        pids.append(int(fleet.status()["pid"]))
        wrong += _stop(fleet, pids[-1])
    if len(set(pids)) != len(pids):
        wrong.append(f"the supervisor has not changed each time: {pids}")
    what = f"W={WORKERS}, plain (tcp, unix), {upgrades} upgrades"
    details = [*(f"wrong: {each}" for each in wrong[:10]), *testimony.all]
    sound = testimony.agree and not wrong
    return [zero("upgrade", what, ledger.lost, ledger.attempts, "connections", details, sound)]


def _upgrade(fleet: Fleet, old: int) -> list[str]:
    """What was wrong about one."""
    command = [sys.executable, "-m", "prefork", COMMAND, "--control", fleet.control]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=DEADLINE)
    if done.returncode:
        return [f"exit status {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}"]
    wrong = []
    try:
        proc.wait_until(lambda: _serves(fleet, old), DEADLINE, f"a successor of supervisor {old} that serves", 0.02)
        proc.wait_until(lambda: not proc.alive(old), DEADLINE, f"the end of supervisor {old}", 0.02)
    except HarnessError as exc:
        wrong.append(str(exc))
    return wrong


def _serves(fleet: Fleet, old: int) -> bool:
    try:
        status = fleet.status()
    except HarnessError:
        # The moment at which the control socket changes hands.
        return False
    ready = [each for each in status["workers"] if each["state"] == "ready"]
    return bool(status["pid"] != old and len(ready) == WORKERS)


def _stop(fleet: Fleet, last: int) -> list[str]:
    """All of it has to end, and its socket's file with it."""
    fleet.ask("stop")
    end = time.monotonic() + DEADLINE
    while proc.session(fleet.pid) and time.monotonic() < end:
        time.sleep(0.02)
    wrong = [f"supervisor {last} is still there after a stop"] if proc.alive(last) else []
    left = [str(path) for path in fleet.folder.glob("*.sock")]
    return wrong + ([f"files left: {left}"] if left else [])
