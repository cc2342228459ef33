"""Who can change a file: what owner, group and permission bits say about it, as sshd's StrictModes asks.

Pure: what stat(2) tells goes in, a reason comes out. How a path is followed is in `system/paths.py`, and which paths
must be trusted in `assembly/trust.py`.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Protocol

ROOT = 0


class Status(Protocol):
    """The part of `os.stat_result` that decides."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Weakness:
    """A path that a user other than root and our own can change."""

    path: str
    reason: str
    """Such as "it belongs to uid 1001"."""
    cure: str
    """The command that ends it, without the path."""
    group: int | None = None
    """The group whose members can change it, if no other user can: it may have no members."""


def weakness(path: str, found: Status, own: int, listed: bool = False) -> Weakness | None:
    """Why the file or folder at `path`, which is no symbolic link, can be changed by others than root and uid `own`.

    `listed`: it has an access list (acl(5)). Then the bits of the group are the list's mask, and the list may let any
    user write.
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


def weakness_of_entry(folder: str, holder: Status, entry: Status, own: int, listed: bool = False) -> Weakness | None:
    """Why others can put something else in the place of `entry`, which is in `folder`; `listed` is of the folder.

    A sticky folder, such as /tmp, protects what is in it: only its owner, and the folder's, may rename or remove it
    (unlink(2), EPERM).
    """
    found = weakness(folder, holder, own, listed)
    if found is None or not holder.st_mode & stat.S_ISVTX or holder.st_uid not in (ROOT, own):
        return found
    return None if entry.st_uid in (ROOT, own) else found
