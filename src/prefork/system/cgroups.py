"""Where the control groups of this process are: their folders under /sys, for both versions (cgroups(7)).

Reads /proc and /sys; nothing is changed, and what the files mean is their readers' business.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def unified(root: Path = Path("/")) -> Iterator[Path]:
    """Folders of the group of version 2, from ours up to the root."""
    for controllers, path in _groups(root):
        if not controllers:
            # In a hybrid set-up version 2 lies beside the controllers of version 1.
            yield from _upwards(root / "sys/fs/cgroup", path)


def legacy(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Folders of the group of version 1 that has this controller, from ours up to the root."""
    for controllers, path in _groups(root):
        if controller in controllers.split(","):
            for mount in dict.fromkeys((controllers, controller)):
                yield from _upwards(root / "sys/fs/cgroup" / mount, path)


def read(path: Path) -> str:
    """The text of a file; "" where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _groups(root: Path) -> Iterator[tuple[str, str]]:
    """(controllers, path) of each group that this process is in; no controllers: version 2."""
    for line in read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        yield controllers, path


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    parts = [part for part in path.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])
