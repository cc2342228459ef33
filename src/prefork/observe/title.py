"""Show in ps(1) that the supervisor was asked to stop, and for how long it accepts before.

A subscriber of events, as the log is.
"""

from __future__ import annotations

from collections.abc import Callable

from ..events import Emit, Event, LameDuckBegan, Stopping


def title_of_stops(emit: Emit, set_title: Callable[[str], object], title: str) -> Emit:
    """Return an `Emit` that calls `emit`, and `set_title` with what follows from the event for a process of `title`."""

    def emit_and_show(event: Event) -> None:
        emit(event)
        if isinstance(event, LameDuckBegan):
            longest = "at most " if event.quiet else ""
            set_title(f"{title}, lame duck for {longest}{event.seconds:g} s")
        elif isinstance(event, Stopping):
            set_title(f"{title}, stopping")

    return emit_and_show
