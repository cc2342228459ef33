"""Control groups of the harness, of either version: where to make them, how to fill them and how to leave them.

Their users are `freezer.py` and `quota.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import proc

_ROOT = Path("/sys/fs/cgroup")
_UNIFIED = (_ROOT, _ROOT / "unified")


def places(controller: str) -> Iterator[tuple[int, Path]]:
    """The version, and the group that this process is in, wherever `controller` may be had."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and (_ROOT / controller / "cgroup.procs").exists():
            yield 1, _ROOT / controller / path.lstrip("/")
        if not controllers:
            for mount in _UNIFIED:
                if (mount / "cgroup.controllers").exists():
                    yield 2, mount / path.lstrip("/")


@contextlib.contextmanager
def group(parent: Path, name: str, pids: Iterable[int]) -> Iterator[Path]:
    """A new group below `parent` with these processes, and the children that they will have. In the end they are in
    `parent`, and the group is gone. Raises OSError if it cannot be made or entered."""
    made = parent / f"soak-{name}-{os.getpid()}"
    made.mkdir()
    try:
        for pid in pids:
            (made / "cgroup.procs").write_text(str(pid))
        yield made
    finally:
        for member in (made / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (parent / "cgroup.procs").write_text(member)
        # A process that is dying still counts for a moment.
        proc.wait_until(lambda: not (made / "cgroup.procs").read_text(), 10, f"an empty {made}")
        made.rmdir()
