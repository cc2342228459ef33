"""Refuse to start, reload or upgrade while the workers' user can change what the supervisor reads or runs.

Root that reads a file which the workers' user can change makes that user root. So with `--user` the configuration, the
certificates and all code are checked, with the directories and links that lead to them, as sshd's StrictModes does.
How a path is walked is in `system/paths.py`, what makes it weak in `core/trust.py`.
"""

from __future__ import annotations

import contextlib
import grp
import itertools
import os
import pwd
import shlex
from collections.abc import Iterable, Iterator
from pathlib import PurePath

from ..config import Settings
from ..core.trust import ROOT, Weakness
from ..errors import UntrustedPathsError
from ..system import paths
from ..system.credentials import Identity
from ..system.tls_files import TLSFiles, read_files
from ..text import escape_controls
from . import code_paths
from .settings_source import SettingsSource

#: Paths named in one refusal, because a virtual environment of the workers' user has thousands.
MAX_PROBLEMS = 12


def load_tls_files(settings: Settings, source: SettingsSource, identity: Identity | None) -> TLSFiles | None:
    """Return the certificates that the settings name, proven, or None if they name none.

    Raises ConfigError if one cannot be used. Raises UntrustedPathsError if workers are another user, and that user
    could have changed a certificate, the settings, or the code that runs.
    """
    # The settings first, and on their own: a file that root must not trust says where the rest is.
    _require(source.weaknesses, settings, identity)
    files = _read_files(settings) if settings.tls else None
    require_trusted(files.weaknesses if files else (), settings, identity)
    return files


def load_changed_files(settings: Settings, identity: Identity | None, used: TLSFiles) -> TLSFiles:
    """Return what the files that the settings name say now, proven, without a look at settings and code.

    What is `used` was proven already.

    Raises ConfigError, and UntrustedPathsError, as `load_tls_files` does. Raises OSError.
    """
    files = _read_files(settings, used)
    _require(files.weaknesses, settings, identity)
    return files


def _read_files(settings: Settings, proven: TLSFiles | None = None) -> TLSFiles:
    client_ca, tickets = settings.tls_client_ca, settings.tls_ticket_key_file
    return read_files(settings.tls, client_ca, settings.tls_strict_sni, tickets, proven)


def require_trusted(weaknesses: Iterable[tuple[str, Weakness]], settings: Settings, identity: Identity | None) -> None:
    """Raise UntrustedPathsError if workers are another user, and that user could change the code that runs or the files
    of `weaknesses`, which come with the option that named each."""
    _require(itertools.chain(weaknesses, _code_weaknesses()), settings, identity)


def _require(weaknesses: Iterable[tuple[str, Weakness]], settings: Settings, identity: Identity | None) -> None:
    # Before the weaknesses are iterated over: those of the code take long to find.
    if identity is None or identity.uid == os.geteuid() or settings.insecure_paths:
        return
    groups = {identity.gid, *(os.getgrouplist(identity.name, identity.gid) if identity.name else ())}
    origins: dict[Weakness, str] = {}
    for origin, weakness in weaknesses:
        if weakness.group is None or weakness.group in groups or _has_members(weakness.group):
            origins.setdefault(weakness, origin)
    problems = [_describe(origin, weakness) for weakness, origin in list(origins.items())[:MAX_PROBLEMS]]
    if ROOT in groups:
        problems.append(
            "--user, --group: workers would be in group 0, which can write to files of root's (choose another group)"
        )
    if len(origins) > MAX_PROBLEMS:
        problems.append(f"{len(origins) - MAX_PROBLEMS} more paths can be changed by other users than root")
    if problems:
        raise UntrustedPathsError(*problems)


def _describe(origin: str, weakness: Weakness) -> str:
    return (
        f"{origin}: {escape_controls(weakness.path)}: {weakness.reason}, so a worker could become root "
        f"({weakness.cure} {escape_controls(shlex.quote(weakness.path))}, or allow it by --insecure-paths)"
    )


# --- groups -----------------------------------------------------------------------------------------------------------


def _has_members(group: int) -> bool:
    """Return whether a user other than root is in `group`. Debian's /usr/local is group staff's, which has no user."""
    try:
        names = {*grp.getgrgid(group).gr_mem, *(each.pw_name for each in pwd.getpwall() if each.pw_gid == group)}
    except KeyError:
        # A group without a name can still be given to any process, by its number.
        return True
    return not names <= {"root"}


# --- code -------------------------------------------------------------------------------------------------------------


def _code_weaknesses() -> Iterator[tuple[str, Weakness]]:
    """Yield how another user could change what this program loads, or the directories above it."""
    for origin, path in dict.fromkeys(code_paths.load_paths()):
        yield from ((origin, weakness) for weakness in _weaknesses(path))
    for origin, path in dict.fromkeys(code_paths.loadable_files()):
        with contextlib.suppress(OSError):
            yield from ((origin, weakness) for weakness in paths.file_weaknesses(path))


def _weaknesses(path: str) -> tuple[Weakness, ...]:
    """Return the weaknesses of `path`, or of the directory that another user could make it in if it is missing."""
    if path == os.devnull or path.startswith(os.devnull + "/"):
        # Any user may write to /dev/null. A variable that names it says that there is no such file.
        return ()
    for existing in (path, *map(str, PurePath(path).parents)):
        with contextlib.suppress(OSError):
            return paths.weaknesses(existing)
    return ()
