"""Watch the files of TLS, and read them again when they have changed, by the same rules as a reload.

When what was seen is read is decided in `core/settling.py`, whether other users could have changed it in `trust.py`.
Workers get it from `parent/tls_renewal.py`.

By looking once a second, and not by inotify(7): a certificate is most often renewed by a change of a symbolic link
somewhere on its path (`..data` of a Kubernetes volume, `live/` of certbot), and inotify would have to follow each link
in turn. stat(2) follows them all, in 2 us. It returns at once for a file on this machine, but not for one on another
machine that does not answer: the supervisor would do nothing else meanwhile. So a file there is watched only if that is
asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

from ..config import Settings
from ..core.mounts import remote_type
from ..core.settling import Settling
from ..errors import ConfigError, PreforkError, reason_of
from ..events import Emit, FilesUnwatched, RenewalRefused, TLSRenewed
from ..system import paths
from ..system.certificates import examine
from ..system.credentials import Identity
from ..system.descriptors import Descriptor, can_seal
from ..system.tls_contexts import TLSContexts
from ..system.tls_files import TICKET_SEED_SIZE, TLSFiles
from ..system.tls_handout import write_handout
from ..text import escape_controls
from ..worker.context import GenerationConfig
from . import trust

#: Seconds between two looks at the dates of the certificates in use.
EXAMINE_INTERVAL = 24 * 3600.0
#: Seconds that keys of tickets are in use: they decrypt what was recorded of TLS 1.2 since they were made.
TICKET_INTERVAL = 12 * 3600.0


class _Interval:
    """Something that is due each `seconds`, at first that many after the first question."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.due_at: float | None = None

    def take(self, now: float) -> bool:
        """Return whether it is due; if so, it is due again later."""
        due = self.due_at is not None and now >= self.due_at
        if due or self.due_at is None:
            self.due_at = now + self._seconds
        return due

    def stop(self) -> None:
        """Let it be due no more, until it is asked for again."""
        self.due_at = None


class TLSWatch:
    """Watches the files that the settings of one generation name; of others after a reload that changes them.

    `warn` gets the files in use once a day, to say what is wrong with their dates.
    """

    def __init__(self, emit: Emit, warn: Callable[[TLSFiles], object]) -> None:
        self._emit = emit
        self._warn = warn
        self._settings: Settings | None = None
        self._paths: tuple[str, ...] = ()
        self._settling = Settling()
        self._is_off = True
        self._examination, self._ticket_change = _Interval(EXAMINE_INTERVAL), _Interval(TICKET_INTERVAL)
        self.counts = {"ok": 0, "failed": 0}
        """How often changed files were taken into use, and how often they could not be."""

    def next_look(self) -> float | None:
        """Return when there is something to do; None if there are no certificates."""
        times = [each.due_at for each in (self._examination, self._ticket_change)]
        times += [] if self._is_off else [self._settling.next_look()]
        return min((each for each in times if each is not None), default=None)

    def renew(self, config: GenerationConfig, now: float) -> tuple[TLSFiles, Descriptor] | str | None:
        """Look at the files of a generation that serves, if it is time, and take into use what has changed.

        Return what is in use now, with what workers are handed out, which the caller owns; or why it takes a reload.
        None if nothing is new, or what is new cannot be used.
        """
        self._watch(config.settings)
        if config.tls is None or config.tls_files is None:
            self._examination.stop()
            self._ticket_change.stop()
            return None
        if self._examination.take(now):
            self._warn(config.tls_files)
        files = self._look(config.settings, config.identity, config.tls_files, now)
        if files is not None:
            files = dataclasses.replace(files, ticket_seed=config.tls_files.ticket_seed)
            return self._use(config.tls, files, now)
        if self._ticket_change.take(now) and config.tls.changes_ticket_keys and can_seal():
            seeded = dataclasses.replace(config.tls_files, ticket_seed=os.urandom(TICKET_SEED_SIZE))
            with contextlib.suppress(PreforkError, OSError, MemoryError):
                return seeded, _take(config.tls, seeded)
        return None

    def _use(self, contexts: TLSContexts, files: TLSFiles, now: float) -> tuple[TLSFiles, Descriptor] | str | None:
        """Take changed files into use."""
        if not contexts.can_take(files) or not can_seal():
            self._settling.postpone(now)
            return "files of TLS have changed"
        try:
            handout = _take(contexts, files)
        except Exception as exc:
            # Whatever the files hold must not end what serves.
            self._failed(exc, now)
            return None
        self._settling.used()
        self.counts["ok"] += 1
        self._emit(TLSRenewed(escape_controls(", ".join(dict.fromkeys(self._paths)))))
        return files, handout

    def _watch(self, settings: Settings) -> None:
        """Watch the files of these settings from now on. Nothing changes if they are watched already."""
        if settings is self._settings:
            return
        named, before, self._settings = paths_of(settings), self._settings, settings
        if before is not None and named == self._paths and settings.tls_watch == before.tls_watch:
            return
        self._paths, self._settling = named, Settling()
        self._is_off = not named or settings.tls_watch == "off" or self._is_remote(settings)

    def _is_remote(self, settings: Settings) -> bool:
        """Return whether files are on another machine, so that they are not watched by themselves, and say so."""
        if settings.tls_watch == "on":
            return False
        try:
            mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
            devices = {path: os.stat(paths.absolute(path)).st_dev for path in self._paths}
        except OSError:
            return False
        for path, device in devices.items():
            if kind := remote_type(mounts, os.major(device), os.minor(device)):
                self._emit(FilesUnwatched(escape_controls(path), escape_controls(kind)))
                return True
        return False

    def _look(self, settings: Settings, identity: Identity | None, used: TLSFiles, now: float) -> TLSFiles | None:
        """Return what the files say now, proven, if that is not what is `used`; None otherwise."""
        if self._is_off or now < self._settling.next_look():
            return None
        if not self._settling.look(tuple(map(_signature, self._paths)), now):
            return None
        try:
            files = trust.load_changed_files(settings, identity, used)
            if not files.same_content(used):
                _require_valid(files)
                return files
        except Exception as exc:
            # As above.
            self._failed(exc, now)
            return None
        self._settling.used()
        return None

    def _failed(self, exc: Exception, now: float) -> None:
        """Note that the files cannot be used, and say so once it is no longer the middle of a renewal."""
        if self._settling.failed(now):
            self.counts["failed"] += 1
            self._emit(RenewalRefused(escape_controls(_reason(exc))))


def _take(contexts: TLSContexts, files: TLSFiles) -> Descriptor:
    """Use other files from now on. Return what workers are handed out, which the caller owns."""
    contexts.replace(files)
    return write_handout(files)


def _reason(exc: Exception) -> str:
    if isinstance(exc, PreforkError):
        return str(exc)
    return reason_of(exc) if isinstance(exc, OSError | MemoryError) else repr(exc)


def paths_of(settings: Settings) -> tuple[str, ...]:
    """Return the paths of all files of TLS, as the settings name them."""
    named = [os.fspath(path) for pair in settings.tls for path in (pair.cert, pair.key)]
    return (*named, *(each for each in (settings.tls_client_ca, settings.tls_ticket_key_file) if each))


def _signature(path: str) -> tuple[int, ...]:
    """Return what changes when the path leads to another file, or the file has another content or other permissions."""
    try:
        found = os.stat(paths.absolute(path))
    except OSError as exc:
        return (exc.errno or 0,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _require_valid(files: TLSFiles) -> None:
    """Raise ConfigError for a certificate that clients refuse because of its dates, which would be no renewal."""
    for pair in files.pairs:
        for found in examine(pair.cert_bytes, time.time()):
            if found.is_invalid and found.is_leaf:
                raise ConfigError(f"--tls-cert {pair.cert}: {found.text}", option="--tls-cert")
