"""Which users can change a file: what owner, group and permission bits say, as sshd's StrictModes asks.

Pure: what stat(2) reports goes in, a weakness comes out. See `assembly/trust.py` for the paths that must be trusted.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Protocol

ROOT = 0


class Status(Protocol):
    """The part of `os.stat_result` that matters here."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Weakness:
    """A path that a user other than root and the process's own can change."""

    path: str
    reason: str
    """For example "it belongs to uid 1001"."""
    cure: str
    """The command that ends it, without the path."""
    group: int | None = None
    """The only group whose members can change it, if no other user can; it may have no members."""


def weakness(path: str, found: Status, own: int, listed: bool = False) -> Weakness | None:
    """Return why users other than root and uid `own` can change the file or directory at `path`.

    `path` is no symbolic link. `listed` means that it has an access list (acl(5)): then the bits of the group are the
    list's mask, and the list may let any user write.
    """
    if found.st_uid not in (ROOT, own):
        return Weakness(path, f"it belongs to uid {found.st_uid}", f"chown {own}")
    if found.st_mode & stat.S_IWOTH:
        return Weakness(path, "any user can write to it", "chmod o-w")
    if not found.st_mode & stat.S_IWGRP:
        return None
    if listed:
        return Weakness(path, "its access list lets others write to it", "setfacl -b")
    if found.st_gid != ROOT:
        return Weakness(path, f"group {found.st_gid} can write to it", "chmod g-w", found.st_gid)
    return None


def weakness_of_entry(directory: str, parent: Status, entry: Status, own: int, listed: bool = False) -> Weakness | None:
    """Return why other users can replace `entry` in `directory`. `parent` and `listed` are of the directory.

    A sticky directory, such as /tmp, protects its entries: only the entry's owner and the directory's may rename or
    remove one (unlink(2), EPERM).
    """
    found = weakness(directory, parent, own, listed)
    if found is None or not parent.st_mode & stat.S_ISVTX or parent.st_uid not in (ROOT, own):
        return found
    return None if entry.st_uid in (ROOT, own) else found
