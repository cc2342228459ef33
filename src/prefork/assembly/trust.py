"""What the supervisor believes or runs must be out of the workers' reach: which paths that is, and the refusal.

Root that reads a file which the workers' user can change makes that user root. So with `--user` the configuration, the
certificates and all code are looked at, with the folders and links that lead to them, as sshd's StrictModes does. How a
path is looked at is in `system/paths.py`, what makes it weak in `core/trust.py`.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shlex
from collections.abc import Iterable, Iterator
from pathlib import PurePath

from ..config import Settings
from ..core.trust import ROOT, Weakness
from ..errors import UntrustedPaths
from ..events import escape_controls
from ..system import paths, tls_contexts
from ..system.credentials import Identity
from . import code
from .sources import Source

#: Paths named in one refusal: a virtual environment of the workers' user has thousands.
MAX_PROBLEMS = 12


def prove(settings: Settings, source: Source, identity: Identity | None) -> tls_contexts.CertificatePair | None:
    """The certificate that the settings name, if they name one. Raises ConfigError, and UntrustedPaths where workers
    are another user and could have changed it, the settings, or the code that runs."""
    # First, and by itself: what else is looked at is what a file says that root must not believe.
    _refuse(source.weaknesses, settings, identity)
    pair = tls_contexts.validate(settings.tls) if settings.tls else None
    require(pair.weaknesses if pair else (), settings, identity)
    return pair


def require(files: Iterable[tuple[str, Weakness]], settings: Settings, identity: Identity | None) -> None:
    """Raise UntrustedPaths where workers are another user and could change one of `files`, with the option that named
    it, or the code that runs."""
    if _is_needed(settings, identity):
        _refuse((*files, *_code_weaknesses()), settings, identity)


def _is_needed(settings: Settings, identity: Identity | None) -> bool:
    return identity is not None and identity.uid != os.geteuid() and not settings.insecure_paths


def _refuse(files: Iterable[tuple[str, Weakness]], settings: Settings, identity: Identity | None) -> None:
    if identity is None or not _is_needed(settings, identity):
        return
    groups = _groups(identity)
    named: dict[Weakness, str] = {}
    for word, each in files:
        if each.group is None or each.group in groups or _has_members(each.group):
            named.setdefault(each, word)
    problems = [_describe(word, each) for each, word in list(named.items())[:MAX_PROBLEMS]]
    if ROOT in groups:
        problems.append(
            "--user, --group: workers would be in group 0, which can write to files of root's; give another"
        )
    if len(named) > MAX_PROBLEMS:
        problems.append(f"{len(named) - MAX_PROBLEMS} more paths can be changed by others than root")
    if problems:
        raise UntrustedPaths(*problems)


def _describe(word: str, found: Weakness) -> str:
    return (
        f"{word}: {escape_controls(found.path)}: {found.reason}, so a worker could become root by it; {found.cure} "
        f"{escape_controls(shlex.quote(found.path))}, or accept it by --insecure-paths"
    )


# --- groups -----------------------------------------------------------------------------------------------------------


def _groups(identity: Identity) -> set[int]:
    return {identity.gid, *(os.getgrouplist(identity.name, identity.gid) if identity.name else ())}


def _has_members(group: int) -> bool:
    """Whether a user other than root is in it. Debian's /usr/local is group staff's, in which there is no user."""
    try:
        names = {*grp.getgrgid(group).gr_mem, *(each.pw_name for each in pwd.getpwall() if each.pw_gid == group)}
    except KeyError:
        # Without a name it can be given by number, to any process.
        return True
    return not names <= {"root"}


# --- code -------------------------------------------------------------------------------------------------------------


def _code_weaknesses() -> Iterator[tuple[str, Weakness]]:
    """Of what this program loads, and of the ways to it."""
    for word, path in dict.fromkeys(code.ways()):
        yield from ((word, each) for each in _weaknesses(path))
    for word, path in dict.fromkeys(code.files()):
        with contextlib.suppress(OSError):
            yield from ((word, each) for each in paths.file_weaknesses(path))


def _weaknesses(path: str) -> tuple[Weakness, ...]:
    """Where there is nothing at `path`, of the folder that it could be made in."""
    if path == os.devnull or path.startswith(os.devnull + "/"):
        # Which any user may write to: a variable that names it says that there is nothing.
        return ()
    for place in (path, *map(str, PurePath(path).parents)):
        with contextlib.suppress(OSError):
            return paths.weaknesses(place)
    return ()
