"""What a supervisor costs while nothing happens: processor time and wake-ups."""

from __future__ import annotations

import time

from .. import proc
from ..report import Row, Verdict
from ..scenario import Context
from ..servers import serving

WORKERS = 8
SECONDS = 120.0
#: Seconds from being ready to the first look: the start has its own cost.
SETTLE = 3.0


def run(context: Context) -> list[Row]:
    """Look, wait, look again; nothing is asked in between."""
    seconds = context.seconds(SECONDS, 10.0)
    with serving("soak.services.bare:service", workers=WORKERS) as fleet:
        workers = fleet.wait_ready(WORKERS)
        time.sleep(SETTLE)
        everybody = [fleet.pid, *workers]
        begun = time.monotonic()
        spent = {pid: proc.processor_seconds(pid) for pid in everybody}
        woken = {pid: proc.switches(pid) for pid in everybody}
        time.sleep(seconds)
        elapsed = time.monotonic() - begun
        spent = {pid: proc.processor_seconds(pid) - spent[pid] for pid in everybody}
        woken = {pid: proc.switches(pid) - woken[pid] for pid in everybody}
    hourly = {pid: 3600 * each / elapsed for pid, each in spent.items()}
    workers_hourly = sum(hourly[pid] for pid in workers) / WORKERS
    workers_woken = sum(woken[pid] for pid in workers) / WORKERS / elapsed
    return [
        Row(
            "idle",
            f"the supervisor's processor time, W={WORKERS}, over {elapsed:.0f} s",
            f"{hourly[fleet.pid]:.2f} s an hour, {woken[fleet.pid] / elapsed:.2f} wake-ups a second",
            round(elapsed),
            "",
            Verdict.MEASURED,
            details=(f"each worker: {workers_hourly:.2f} s an hour, {workers_woken:.2f} wake-ups a second",),
        )
    ]
