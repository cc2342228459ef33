"""Freezing whole process trees at once: by the cgroup freezer of either version, else by SIGSTOP to every process.

Only the means. `scenarios/freezes.py` says why, and what must not follow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import groups, proc

#: By version: the file of a group, and the words for frozen and thawed.
_FILES = {1: ("freezer.state", ("FROZEN", "THAWED")), 2: ("cgroup.freeze", ("1", "0"))}


@dataclass(frozen=True, slots=True)
class Freezer:
    """The means that was found. `freeze` returns once every process is frozen."""

    means: str
    freeze: Callable[[], None]
    thaw: Callable[[], None]


@contextlib.contextmanager
def freezer(pids: Iterable[int]) -> Iterator[Freezer]:
    """For these processes and the children that they will have. In the end they run again, where they were before."""
    found = list(pids)
    for version, parent in groups.places("freezer"):
        file, words = _FILES[version]
        with contextlib.ExitStack() as stack:
            try:
                group = stack.enter_context(groups.group(parent, "freezer", found))
            except OSError:
                continue
            made = _by_group(f"cgroup v{version} freezer", group / file, words)
            stack.callback(made.thaw)
            yield made
            return
    made = Freezer("SIGSTOP to all", lambda: proc.stop(found), lambda: proc.resume(found))
    try:
        yield made
    finally:
        made.thaw()


def _by_group(means: str, file: Path, words: tuple[str, str]) -> Freezer:
    def turn(word: str) -> None:
        file.write_text(word)
        proc.wait_until(lambda: _is(file, word), 10, f"{file} saying {word}")

    return Freezer(means, lambda: turn(words[0]), lambda: turn(words[1]))


def _is(file: Path, word: str) -> bool:
    if file.name == "freezer.state":
        return file.read_text().strip() == word
    return f"frozen {word}" in (file.parent / "cgroup.events").read_text()
