"""Giving up root: which user a worker becomes, in the one order that works, and proven afterwards.

Names are looked up in the supervisor, where a wrong one can be told in a line; the change happens in each worker.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
from dataclasses import dataclass

from ..errors import ConfigError
from ..text import escape_controls
from .parent_death import load_prctl
from .terminal import give_up_terminal

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and a primary group, with the name that the supplementary groups are looked up by ("" for none)."""

    uid: int
    gid: int
    name: str


def look_up(user: str, group: str) -> Identity | None:
    """The identity that `--user` and `--group` (names or numbers, "" for none given) say; None if both are empty.

    Raises ConfigError for an unknown one, and where this process may not take it on.
    """
    if not user and not group:
        return None
    uid, gid, name = os.geteuid(), os.getegid(), ""
    if user:
        uid, gid, name = _user(user)
    if group:
        gid = _group(group)
    if os.geteuid() != 0 and (uid, gid) != (os.geteuid(), os.getegid()):
        option, value = ("--user", user) if user else ("--group", group)
        raise ConfigError(f"{option} {escape_controls(value)}: only root can change it")
    return Identity(uid, gid, name)


def _user(text: str) -> tuple[int, int, str]:
    number = _number(text)
    try:
        found = pwd.getpwnam(text) if number is None else pwd.getpwuid(number)
    except (KeyError, ValueError):
        if number is not None:
            # It needs no entry: containers have such users. Its group is the same number.
            return number, number, ""
        raise ConfigError(f"--user {escape_controls(text)}: there is no such user") from None
    return found.pw_uid, found.pw_gid, found.pw_name


def _group(text: str) -> int:
    number = _number(text)
    if number is not None:
        return number
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        raise ConfigError(f"--group {escape_controls(text)}: there is no such group") from None


def _number(text: str) -> int | None:
    """The number that `text` says, if it is one that a user or group can have."""
    # str.isdigit() is true for digits of every script, and superscripts.
    number = int(text) if re.fullmatch("[0-9]{1,10}", text) else None
    return number if number is not None and number < 2**32 - 1 else None


def drop_privileges(identity: Identity) -> None:
    """Be that user and nobody else, for good. Raises RuntimeError if it cannot be proven.

    Groups first, while there is the right to; `initgroups` sets the supplementary groups and not the group itself. The
    user last. NO_NEW_PRIVS keeps programs that the service starts from getting more by a set-user-ID file (prctl(2)).
    Clears PR_SET_PDEATHSIG: `die_with_parent` comes after.
    """
    if os.geteuid() == 0:
        if identity.uid != 0:
            give_up_terminal()
        if identity.name:
            os.initgroups(identity.name, identity.gid)
        else:
            os.setgroups([identity.gid])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    prctl = load_prctl()
    if prctl is not None:
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _verify(identity)


def _verify(identity: Identity) -> None:
    if os.getresuid() != (identity.uid,) * 3 or os.getresgid() != (identity.gid,) * 3:
        raise RuntimeError(f"not the user that was asked for: {os.getresuid()}, {os.getresgid()}")
    if identity.uid != 0:
        try:
            os.setuid(0)
        except OSError:
            return
        raise RuntimeError("root can be had back")
