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

import os
import time
from pathlib import Path

from ..config import Settings
from ..core.mounts import remote_type
from ..core.settling import Settling
from ..errors import ConfigError, PreforkError, reason_of
from ..events import Emit, FilesUnwatched, RenewalRefused, TLSRenewed
from ..system import paths
from ..system.certificates import examine
from ..system.credentials import Identity
from ..system.tls_files import TLSFiles
from ..text import escape_controls
from . import trust

#: Seconds between two looks at the dates of the certificates in use.
EXAMINE_INTERVAL = 24 * 3600.0


class TLSWatch:
    """Watches the files that the settings of one generation name; of others after a reload that changes them."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._settings: Settings | None = None
        self._paths: tuple[str, ...] = ()
        self._settling = Settling()
        self._is_off = True
        self._examine_at: float | None = None
        self.counts = {"ok": 0, "failed": 0}
        """How often changed files were taken into use, and how often they could not be."""

    def next_look(self) -> float | None:
        """Return when to look again, at the files or at the dates of certificates; None if there are none."""
        times = [] if self._is_off else [self._settling.next_look()]
        times += [] if self._examine_at is None else [self._examine_at]
        return min(times, default=None)

    def take_examination(self, now: float) -> bool:
        """Return whether to look at the dates of the certificates in use: once a day, besides starts and reloads."""
        due = self._examine_at is not None and now >= self._examine_at
        if due or self._examine_at is None:
            self._examine_at = now + EXAMINE_INTERVAL
        return due

    def watch(self, settings: Settings) -> None:
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

    def look(self, settings: Settings, identity: Identity | None, used: TLSFiles, now: float) -> TLSFiles | None:
        """Return what the files say now, proven, if that is not what is `used`; None otherwise."""
        if self._is_off or now < self._settling.next_look():
            return None
        if not self._settling.look(tuple(map(_signature, self._paths)), now):
            return None
        try:
            files = trust.load_changed_files(settings, identity)
            if files.same_content(used):
                self._settling.used()
                return None
            _require_valid(files)
        except (PreforkError, OSError, MemoryError) as exc:
            self.failed(exc, now)
            return None
        return files

    def succeeded(self) -> None:
        """Note that the files are in use."""
        self._settling.used()
        self.counts["ok"] += 1
        self._emit(TLSRenewed(escape_controls(", ".join(dict.fromkeys(self._paths)))))

    def postpone(self, now: float) -> None:
        """Note that a reload was asked for, which takes the files into use."""
        self._settling.postpone(now)

    def failed(self, exc: Exception, now: float) -> None:
        """Note that the files cannot be used, and say so once it is no longer the middle of a renewal."""
        if self._settling.failed(now):
            self.counts["failed"] += 1
            self._emit(RenewalRefused(escape_controls(_reason(exc))))


def _reason(exc: Exception) -> str:
    if isinstance(exc, OSError | MemoryError) and not isinstance(exc, PreforkError):
        return reason_of(exc)
    return str(exc)


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
