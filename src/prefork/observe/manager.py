"""Report the supervisor's events to the service manager as sd_notify(3) states.

Only the supervisor uses it, because workers do not speak for the service.
"""

from __future__ import annotations

import os

from ..events import (
    Emit,
    Event,
    LameDuckBegan,
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
    """Return an `Emit` that calls `emit` and sends the states that follow from the event to the service manager."""

    def emit_and_notify(event: Event) -> None:
        emit(event)
        text = escape_controls(str(event))
        if isinstance(event, Ready):
            notifier.send(READY=1, STATUS=text)
        elif isinstance(event, Reloading):
            notifier.send(RELOADING=1, MONOTONIC_USEC=monotonic_usec(), STATUS=text)
        elif isinstance(event, Reloaded | ReloadFailed):
            # Also after a failure, because the running workers go on serving.
            notifier.send(READY=1, STATUS=text)
        elif isinstance(event, ReloadIgnored):
            # A manager that requested the reload by a signal waits for both states.
            notifier.send(RELOADING=1, MONOTONIC_USEC=monotonic_usec())
            notifier.send(READY=1, STATUS=text)
        elif isinstance(event, Upgraded):
            notifier.send(MAINPID=event.pid, STATUS=text)
        elif isinstance(event, RolledBack):
            notifier.send(MAINPID=os.getpid(), STATUS=text)
        elif isinstance(event, LameDuckBegan | Stopping):
            # From the first of the two on its time to stop passes (TimeoutStopSec), and nothing extends it.
            notifier.send(STOPPING=1, STATUS=text)
        elif isinstance(event, Scaled):
            notifier.send(STATUS=text)

    return emit_and_notify
