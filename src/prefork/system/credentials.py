"""Drop root privileges: look up the workers' user, change to it in the one order that works, and verify it.

The supervisor looks the names up, so that a wrong one is reported in one line; each worker changes its own user.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import re
import termios
from collections.abc import Iterator
from dataclasses import dataclass

from ..checks import reject
from ..errors import ExitCode
from .parent_death import load_prctl

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and a primary group; `name` selects the supplementary groups ("" for none)."""

    uid: int
    gid: int
    name: str


def resolve_identity(user: str, group: str) -> Identity | None:
    """Return the identity for `--user` and `--group` (names or numbers); None if both are "".

    Raises ConfigError for an unknown name, and for an identity that only root could change to.
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
        reject(option, value, "only root can change it")
    return Identity(uid, gid, name)


def _user(text: str) -> tuple[int, int, str]:
    number = _number(text)
    try:
        found = pwd.getpwnam(text) if number is None else pwd.getpwuid(number)
    except (KeyError, ValueError):
        if number is not None:
            # Containers have users without an entry in the user database. The group gets the same number.
            return number, number, ""
        reject("--user", text, "there is no such user")
    return found.pw_uid, found.pw_gid, found.pw_name


def _group(text: str) -> int:
    number = _number(text)
    if number is not None:
        return number
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        reject("--group", text, "there is no such group")


def _number(text: str) -> int | None:
    """Return `text` as a number that a user or group can have; None if it is not one."""
    # Not str.isdigit(), which accepts superscripts and the digits of every script.
    number = int(text) if re.fullmatch("[0-9]{1,10}", text) else None
    return number if number is not None and number < 2**32 - 1 else None


def drop_privileges(identity: Identity) -> None:
    """Become `identity` permanently. Raises RuntimeError if that cannot be verified.

    Set the groups first, while this process has the right to; `initgroups` sets only the supplementary groups. Set the
    user last. NO_NEW_PRIVS keeps programs that the service starts from gaining privileges by a set-user-ID file
    (prctl(2)). This clears PR_SET_PDEATHSIG, so call `die_with_parent` afterwards.
    """
    if os.geteuid() == 0:
        if identity.uid != 0:
            _give_up_terminal()
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


@contextlib.contextmanager
def as_user(identity: Identity | None) -> Iterator[None]:
    """Do something with the rights of `identity` only, then have this process's own again; None changes nothing.

    For root, which binds what another user's program asks for: the kernel decides whether that user might. The saved
    user stays root's, so no process of that user can signal or trace this one meanwhile (kill(2), ptrace(2)). Raises
    OSError. If the rights cannot be restored the process ends, because nothing would work any more.
    """
    if identity is None or os.geteuid() != 0 or identity.uid == 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    try:
        os.setgroups(os.getgrouplist(identity.name, identity.gid) if identity.name else [identity.gid])
        os.setegid(identity.gid)
        os.seteuid(identity.uid)
        yield
    finally:
        try:
            os.seteuid(0)
            os.setegid(gid)
            os.setgroups(groups)
        except OSError:
            os._exit(ExitCode.BUG)


def _verify(identity: Identity) -> None:
    if os.getresuid() != (identity.uid,) * 3 or os.getresgid() != (identity.gid,) * 3:
        raise RuntimeError(f"the user or group did not change: {os.getresuid()}, {os.getresgid()}")
    if identity.uid != 0:
        try:
            os.setuid(0)
        except OSError:
            return
        raise RuntimeError("the process could become root again")


def _give_up_terminal() -> None:
    """Keep only the right to write to the terminal. Raises nothing, because most servers have no terminal.

    With root's terminal another user's program could type into root's shell (TIOCSTI, ioctl_tty(2)) and read what root
    types there.
    """
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            if os.isatty(fd):
                _reopen(fd)
    # The controlling terminal may be a fourth one. Without a controlling terminal TIOCSTI is refused (EPERM).
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(terminal, termios.TIOCNOTTY)
        finally:
            os.close(terminal)


def _reopen(fd: int) -> None:
    """Replace standard input by /dev/null; reopen the others write-only, as a shell gives all three one description."""
    path, flags = (os.devnull, os.O_RDONLY) if fd == 0 else (f"/proc/self/fd/{fd}", os.O_WRONLY)
    new = os.open(path, flags | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        os.dup2(new, fd)
    finally:
        os.close(new)
