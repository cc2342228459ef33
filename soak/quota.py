"""A part of a processor for whole process trees, by the cgroup controller of either version.

Only the means; what must not come of it is in `scenarios/starved.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import groups
from .errors import HarnessError

_PERIOD = 100_000


@contextlib.contextmanager
def quota(pids: Iterable[int], part: float) -> Iterator[None]:
    """Limit these processes and their future children together to `part` of one CPU within the block.

    Afterwards they are in their former groups. Raises HarnessError if no control group can be made for it.
    """
    found, refused = list(pids), "there is no controller of processors"
    for version, parent in groups.places("cpu"):
        with contextlib.ExitStack() as stack:
            try:
                _limit(version, stack.enter_context(groups.group(parent, "quota", found)), int(_PERIOD * part))
            except OSError as exc:
                refused = f"{exc.filename}: {os.strerror(exc.errno or 0).lower()}"
                continue
            yield
            return
    raise HarnessError(f"no quota of a processor: {refused}")


def _limit(version: int, group: Path, micros: int) -> None:
    if version == 1:
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
        (group / "cpu.cfs_quota_us").write_text(str(micros))
    else:
        (group / "cpu.max").write_text(f"{micros} {_PERIOD}")
