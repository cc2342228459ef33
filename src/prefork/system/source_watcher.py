"""The process that watches sources for `--reload`: it reports changed files to its supervisor, by a pipe.

It has threads (watchfiles'), which the supervisor must not have. When a reload begins is not decided here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from typing import NoReturn

from ..core.messages import ChangedMessage, Message, ReadyMessage, UnableMessage, encode
from ..core.sources import describe_changes
from ..errors import ExitCode
from ..text import describe_error
from .credentials import drop_privileges
from .descriptors import Descriptor
from .parent_death import die_with_parent
from .processes import System, set_title
from .signals import ignore_without_inheriting, unblock_signals
from .source_changes import Changes, Watched

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
    changes = Changes(watched)
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
