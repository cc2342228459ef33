"""The access log's file: opened by the supervisor before the first fork, and written by the workers."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import Callable

from ..checks import reject
from ..core.account import Account
from ..errors import reason_of
from ..events import Emit
from ..observe.access_log import AccessLog, Format, json_format, text_format
from ..observe.output import Output
from ..observe.reopen import LogFiles
from ..system.credentials import Identity

#: Standard output, as --access-log names it.
_STANDARD_OUTPUT = "-"


def open_access_log(files: LogFiles, path: str, identity: Identity | None) -> int | None:
    """Open the file of --access-log, for workers that are `identity`. Return its descriptor; None: there is none.

    Raises ConfigError.
    """
    if not path:
        return None
    if path == _STANDARD_OUTPUT:
        if sys.stdout is None:
            # Python found no descriptor 1 at its start, and what has that number now is something else.
            reject("--access-log", path, "standard output is closed")
        return 1
    uid, gid = (os.geteuid(), os.getegid()) if identity is None else (identity.uid, identity.gid)
    try:
        return files.open(path, uid, gid)
    except OSError as exc:
        reject("--access-log", path, reason_of(exc))


def access_log_maker(
    fd: int | None, log_format: str, slot: int, emit: Emit, account: Account
) -> Callable[[asyncio.AbstractEventLoop], AccessLog] | None:
    """Return what makes the access log of one loop of a worker; None: there is none."""
    if fd is None:
        return None
    format = (json_format if log_format == "json" else text_format)(slot)
    return functools.partial(_make, fd=fd, format=format, emit=emit, account=account)


def _make(loop: asyncio.AbstractEventLoop, fd: int, format: Format, emit: Emit, account: Account) -> AccessLog:
    return AccessLog(loop, Output(fd), format, emit, account.log_dropped)
