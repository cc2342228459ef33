"""What is watched for `--reload`, and which of the paths that the kernel reports are an edit.

An edit is another content than the last one that was reported, and is complete. Nothing here waits;
`source_watcher.py` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..core.sources import is_ignored, is_source
from .credentials import Identity

#: What a file has for a moment while it is written: nothing, or no content.
_UNFINISHED = (None, hashlib.sha256().digest())
#: Digests of changed files that are kept.
_MAX_DIGESTS = 10_000


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched, by absolute paths, and the user that watches it."""

    directories: tuple[str, ...]
    config: str
    """The configuration file; "" if there is none."""
    identity: Identity | None
    """The user of the workers; None is that of the supervisor."""


class Changes:
    """Finds what is new among the paths that the kernel reports."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._digests: dict[str, bytes | None] = {}
        """The content of each file that was reported, None if it was gone.

        A service that writes a module when it starts would otherwise be reloaded for ever.
        """
        self._config = self._last_config = _signature(watched.config)
        """The configuration file when it was reported, and at the last look. It is reported if two looks in a row are
        the same: an empty file is a valid one, in which every setting is the default."""
        self._unfinished: set[str] = set()
        """Files that were gone or empty, and are looked at once more.

        A program that writes a file empties it first, and some editors move it away. Taken for an edit, that would be a
        reload without that code.
        """

    def sources_since(self, since: float) -> list[str]:
        """Return the sources whose inode changed after `since`; a file that was renamed keeps its older mtime."""
        found = []
        for directory in self._watched.directories:
            for path in _sources_in(directory, directory):
                with contextlib.suppress(OSError):
                    if os.stat(path).st_ctime > since:
                        found.append(path)
        return found

    def take(self, paths: Iterable[str]) -> list[str]:
        """Return the names of the sources that have another content than when they were last reported.

        Call it from time to time without `paths`: what was half written at one call is reported by the next.
        """
        seen_before, self._unfinished = self._unfinished, set()
        names = [name for path in sorted({*paths, *seen_before}) for name in self._take(path, seen_before)]
        before, self._last_config = self._last_config, _signature(self._watched.config)
        if before == self._last_config != self._config:
            self._config = self._last_config
            names.insert(0, self._name(self._watched.config))
        return names

    def _take(self, path: str, seen_before: set[str]) -> Iterator[str]:
        for directory in self._watched.directories:
            if is_source(path, directory):
                if self._is_new(path, path in seen_before):
                    yield self._name(path)
                return
            if f"{path}/".startswith(f"{directory.rstrip('/')}/") and os.path.isdir(path):
                # A directory that was moved here is reported, and the files in it are not.
                yield from (self._name(each) for each in _sources_in(path, directory) if self._is_new(each, True))
                return

    def _is_new(self, path: str, finished: bool) -> bool:
        digest = _digest(path)
        if path in self._digests and self._digests[path] == digest:
            return False
        if digest in _UNFINISHED and not finished:
            self._unfinished.add(path)
            return False
        if len(self._digests) >= _MAX_DIGESTS:
            self._digests.clear()
        self._digests[path] = digest
        return True

    def _name(self, path: str) -> str:
        for directory in self._watched.directories:
            if path.startswith(f"{directory.rstrip('/')}/"):
                return os.path.relpath(path, directory)
        return path


def _sources_in(top: str, below: str) -> Iterator[str]:
    """Yield the sources in `top` and its directories; `below` is the watched directory that it is in."""
    for directory, directories, files in os.walk(top):
        directories[:] = [each for each in directories if not is_ignored(each)]
        for path in (os.path.join(directory, name) for name in files):
            if is_source(path, below):
                yield path


def _digest(path: str) -> bytes | None:
    """Return a digest of the content of a file; None if there is no regular file that can be read."""
    try:
        # Asked first, because a FIFO would hold this process up until another one writes to it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def _signature(path: str) -> tuple[int, int, int] | None:
    """Return what is another for another content of the file: its time, inode and size; None if it is gone."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
