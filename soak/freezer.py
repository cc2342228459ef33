"""Freezing whole process trees at once: by the cgroup freezer of either version, else by SIGSTOP to everybody.

Only the means; why, and what must not come of it, is in `scenarios/freezes.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import proc

_V1 = Path("/sys/fs/cgroup/freezer")
_V2 = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


@dataclass(frozen=True, slots=True)
class Freezer:
    """`freeze` returns when everybody is frozen; `means` is by what."""

    means: str
    freeze: Callable[[], None]
    thaw: Callable[[], None]


@contextlib.contextmanager
def freezer(pids: Iterable[int]) -> Iterator[Freezer]:
    """For these processes and the children that they will have. In the end they run again, where they were before."""
    found = list(pids)
    for means, parent, file, words in _groups():
        group = parent / f"soak-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for pid in found:
                (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            _leave(group, parent)
            continue
        made = _by_group(means, group / file, words)
        try:
            yield made
        finally:
            made.thaw()
            _leave(group, parent)
        return
    made = Freezer("SIGSTOP to all", lambda: proc.stop(found), lambda: proc.resume(found))
    try:
        yield made
    finally:
        made.thaw()


def _groups() -> Iterator[tuple[str, Path, str, tuple[str, str]]]:
    """Means, a group of ours to make another one in, its file, and the words for frozen and thawed."""
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, path in own:
        if "freezer" in controllers.split(",") and (_V1 / "cgroup.procs").exists():
            yield "cgroup v1 freezer", _V1 / path.lstrip("/"), "freezer.state", ("FROZEN", "THAWED")
        if not controllers:
            for mount in _V2:
                if (mount / "cgroup.controllers").exists():
                    yield "cgroup v2 freezer", mount / path.lstrip("/"), "cgroup.freeze", ("1", "0")


def _by_group(means: str, file: Path, words: tuple[str, str]) -> Freezer:
    def turn(word: str) -> None:
        file.write_text(word)
        proc.wait_until(lambda: _is(file, word), 10, f"{file} saying {word}")

    return Freezer(means, lambda: turn(words[0]), lambda: turn(words[1]))


def _is(file: Path, word: str) -> bool:
    if file.name == "freezer.state":
        return file.read_text().strip() == word
    return f"frozen {word}" in (file.parent / "cgroup.events").read_text()


def _leave(group: Path, parent: Path) -> None:
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):
            (parent / "cgroup.procs").write_text(pid)
    # Whoever is dying still counts for a moment.
    proc.wait_until(lambda: not (group / "cgroup.procs").read_text(), 10, f"an empty {group}")
    group.rmdir()
