"""The service manager as a subscriber: events of the supervisor become sd_notify(3) states.

Only the supervisor's events; workers do not speak for the service.
"""

from __future__ import annotations

import os

from ..events import (
    Emit,
    Event,
    Ready,
    Reloaded,
    ReloadFailed,
    ReloadIgnored,
    Reloading,
    RolledBack,
    Scaled,
    Stopping,
    Upgraded,
)
from ..system.notify import Notifier, monotonic_usec
from ..text import escape_controls


def notify_systemd(emit: Emit, notifier: Notifier) -> Emit:
    """`emit`, and the manager is told what concerns it."""

    def both(event: Event) -> None:
        emit(event)
        text = escape_controls(str(event))
        if isinstance(event, Ready):
            notifier.send(READY=1, STATUS=text)
        elif isinstance(event, Reloading):
            notifier.send(RELOADING=1, MONOTONIC_USEC=monotonic_usec(), STATUS=text)
        elif isinstance(event, Reloaded | ReloadFailed):
            # Also after a failure: what ran before serves on.
            notifier.send(READY=1, STATUS=text)
        elif isinstance(event, ReloadIgnored):
            # Who has asked by a signal waits for both.
            notifier.send(RELOADING=1, MONOTONIC_USEC=monotonic_usec())
            notifier.send(READY=1, STATUS=text)
        elif isinstance(event, Upgraded):
            notifier.send(MAINPID=event.pid, STATUS=text)
        elif isinstance(event, RolledBack):
            notifier.send(MAINPID=os.getpid(), STATUS=text)
        elif isinstance(event, Stopping):
            notifier.send(STOPPING=1, STATUS=text)
        elif isinstance(event, Scaled):
            notifier.send(STATUS=text)

    return both
