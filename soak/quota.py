"""A part of a processor for whole process trees, by the cgroup controller of either version.

Only the means; what must not come of it is in `scenarios/starved.py`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import HarnessError

_V1 = Path("/sys/fs/cgroup/cpu")
_V2 = Path("/sys/fs/cgroup")
_PERIOD = 100_000


@contextlib.contextmanager
def quota(pids: Iterable[int], part: float) -> Iterator[None]:
    """These processes, and the children that they will have, together get so much of one processor. Raises HarnessError
    where there is no such group."""
    parent = _V1 if (_V1 / "cpu.cfs_quota_us").exists() else _V2
    group = parent / f"soak-quota-{os.getpid()}"
    micros = int(_PERIOD * part)
    try:
        group.mkdir()
        try:
            if parent is _V1:
                (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
                (group / "cpu.cfs_quota_us").write_text(str(micros))
            else:
                (group / "cpu.max").write_text(f"{micros} {_PERIOD}")
            for pid in pids:
                (group / "cgroup.procs").write_text(str(pid))
            yield
        finally:
            for member in (group / "cgroup.procs").read_text().split():
                (parent / "cgroup.procs").write_text(member)
            # A process leaves a moment after it was told to.
            for _ in range(100):
                with contextlib.suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.05)
    except OSError as exc:
        raise HarnessError(f"{exc.filename}: {os.strerror(exc.errno or 0).lower()}; no quota of a processor") from exc
