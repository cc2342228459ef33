"""The process that watches sources for `--reload`: it reports changed files to its supervisor, by a pipe.

It has threads (watchfiles'), which the supervisor must not have. When a reload begins is not decided here.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from ..core.messages import ChangedMessage, Message, ReadyMessage, UnableMessage, encode
from ..core.sources import describe_changes, is_ignored, is_source
from ..errors import ExitCode
from ..text import describe_error
from .credentials import Identity, drop_privileges
from .descriptors import Descriptor
from .parent_death import die_with_parent
from .processes import System, set_title
from .signals import ignore_without_inheriting, unblock_signals

#: Only SIGKILL ends the watcher. A service manager or a terminal signals the whole group, and the supervisor decides.
_IGNORED_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
)
#: Milliseconds without another change that end a batch, and its maximum length: other files may change all the time.
_STEP = 50
_DEBOUNCE = 500
#: Milliseconds between two looks at the configuration file, and at the parent.
_TICK = 500
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


def run_watcher(watched: Watched, pipe: Descriptor, parent: int, since: float) -> NoReturn:
    """Report changes until the parent ends, from a freshly forked process whose signals are blocked.

    Writes a ReadyMessage once changes are seen, then one ChangedMessage for each batch of them. A file that changed
    after `since`, in seconds since the epoch, is reported too: it may have changed before anything watched it.
    """
    code: int = ExitCode.SERVICE
    try:
        ignore_without_inheriting(_IGNORED_SIGNALS)
        _close_inherited(pipe.fileno())
        set_title("source watcher")
        if watched.identity is not None:
            drop_privileges(watched.identity)
        # After the change of user, which clears it (prctl(2)).
        die_with_parent(parent, signal.SIGKILL)
        unblock_signals()
        _watch(watched, pipe.fileno(), parent, since)
    except BrokenPipeError:
        code = ExitCode.OK
    except Exception as exc:
        with contextlib.suppress(OSError):
            _send(pipe.fileno(), UnableMessage(describe_error(exc)))
    finally:
        System().exit(code)


def _close_inherited(kept: int) -> None:
    """Close all descriptors but the standard ones and `kept`.

    Otherwise the listening sockets would stay open, and the kernel would accept for a server that is gone. Their owners
    are never finalized, because this process ends by `_exit`.
    """
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _watch(watched: Watched, pipe: int, parent: int, since: float) -> None:
    # Here, because only this process needs it, and it is an extra.
    import watchfiles

    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    changes = _Changes(watched)
    batches = watchfiles.watch(
        *watched.directories,
        # Not its filter, which looks at the whole path: a project below a hidden directory would have no sources.
        watch_filter=None,
        debounce=_DEBOUNCE,
        step=_STEP,
        rust_timeout=_TICK,
        yield_on_timeout=True,
        ignore_permission_denied=True,
    )
    started = False
    for batch in batches:
        paths = [path for _, path in batch]
        if not started:
            # The kernel reports since before this point, so no change falls between.
            started = True
            _send(pipe, ReadyMessage())
            paths += changes.sources_since(since)
        names = changes.take(paths)
        if names:
            _send(pipe, ChangedMessage(describe_changes(names)))
        if os.getppid() not in (parent, 0):
            return


def _send(pipe: int, message: Message) -> None:
    os.write(pipe, encode(message))


class _Changes:
    """Finds what is new among the paths that the kernel reports."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._digests: dict[str, bytes | None] = {}
        """The content of each file that was reported, None if it was gone.

        A service that writes a module when it starts would otherwise be reloaded for ever.
        """
        self._config = _signature(watched.config)

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
        """Return the names of the sources that have another content than when they were last reported."""
        names = [name for path in sorted(set(paths)) for name in self._take(path)]
        signature = _signature(self._watched.config)
        if signature != self._config:
            self._config = signature
            names.insert(0, self._name(self._watched.config))
        return names

    def _take(self, path: str) -> Iterator[str]:
        for directory in self._watched.directories:
            if is_source(path, directory):
                if self._is_new(path):
                    yield self._name(path)
                return
            if f"{path}/".startswith(f"{directory.rstrip('/')}/") and os.path.isdir(path):
                # A directory that was moved here is reported, and the files in it are not.
                yield from (self._name(each) for each in _sources_in(path, directory) if self._is_new(each))
                return

    def _is_new(self, path: str) -> bool:
        digest = _digest(path)
        if path in self._digests and self._digests[path] == digest:
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
