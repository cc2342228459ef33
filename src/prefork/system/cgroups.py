"""Find the control groups of this process: their directories under /sys, for versions 1 and 2 (cgroups(7)).

Only reads /proc and /sys. The callers (`cpus.py`, `memory.py`) interpret the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def unified(root: Path) -> Iterator[Path]:
    """Yield the directories of the version 2 group, from this process's own up to the root."""
    for controllers, path in _groups(root):
        if not controllers:
            # In a hybrid set-up version 2 lies beside the controllers of version 1.
            yield from _upwards(root / "sys/fs/cgroup", path)


def legacy(controller: str, root: Path) -> Iterator[Path]:
    """Yield the directories of the version 1 group with this controller, from this process's own up to the root."""
    for controllers, path in _groups(root):
        if controller in controllers.split(","):
            for mount in dict.fromkeys((controllers, controller)):
                yield from _upwards(root / "sys/fs/cgroup" / mount, path)


def read(path: Path) -> str:
    """Return the text of a file, or "" if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _groups(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (controllers, path) of each group of this process; version 2 has no controllers."""
    for line in read(root / "proc/self/cgroup").splitlines():
        _, _, group = line.partition(":")
        controllers, _, path = group.partition(":")
        yield controllers, path


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    parts = [part for part in path.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])
