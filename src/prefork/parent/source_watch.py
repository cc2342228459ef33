"""The watcher of sources as the supervisor has it: fork it, read what it reports, and replace it when it dies.

The watcher runs the workers' user, so it is not trusted: it can ask for a reload, and for nothing else. What it does is
in `system/source_watcher.py`; when a reload begins is decided in `supervisor.py`.
"""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass, field

from ..core.messages import ChangedMessage, Decoder, ReadyMessage, UnableMessage
from ..errors import reason_of
from ..events import Emit, SourcesUnwatched, WatchingSources
from ..system.child import Child
from ..system.descriptors import Descriptor
from ..system.processes import REAP_INTERVAL, System
from ..system.source_changes import Watched
from ..system.source_watcher import run_watcher
from ..text import escape_ascii, escape_controls
from .restarts import Restarts

#: Seconds between two reads of the pipe: a watcher that floods it does not keep the supervisor busy.
READ_INTERVAL = 0.1
#: Bytes of one read. A message is smaller, so two reads always have a whole one.
_READ_BYTES = 8192
#: Seconds before the last report from which a new watcher reports again: what its predecessor saw it may not have sent.
_OVERLAP = 2.0


@dataclass(slots=True)
class _Watcher:
    """One watcher process, with what the supervisor holds for it."""

    child: Child
    pipe: Descriptor
    decoder: Decoder = field(default_factory=Decoder)
    read_again_at: float = 0.0
    ready_at: float | None = None
    """When it said that it sees changes."""
    reason: str = ""
    """Why it cannot watch, as it says."""


class SourceWatch:
    """Owns the watcher process, one at a time, and what it has reported. Does nothing if `watched` is None."""

    def __init__(self, watched: Watched | None, system: System, emit: Emit) -> None:
        self._watched = watched
        self._system = system
        self._emit = emit
        self._parent = os.getpid()
        self._watcher: _Watcher | None = None
        self._restarts = Restarts()
        self._since = time.time()
        """The time of day from which on changes may not have been reported."""
        self._change = ""
        """What has changed since the last reload began; "" if nothing has."""

    @property
    def pid(self) -> int:
        """The watcher's pid; 0 if none runs."""
        return 0 if self._watcher is None else self._watcher.child.pid

    def take_change(self) -> str:
        """Return what has changed, once; "" if nothing has."""
        change, self._change = self._change, ""
        return change

    # --- polling ------------------------------------------------------------------------------------------------------

    def interests(self, now: float) -> dict[int, int]:
        watcher = self._watcher
        if watcher is None:
            return {}
        wanted = {watcher.pipe.fileno(): select.POLLIN} if now >= watcher.read_again_at else {}
        if watcher.child.pollable:
            wanted[watcher.child.fileno()] = select.POLLIN
        return wanted

    def next_due(self, now: float) -> float | None:
        """Return when to fork the watcher, to read its pipe again, or to look for its exit without a pidfd."""
        watcher = self._watcher
        if self._watched is None:
            return None
        if watcher is None:
            return self._restarts.start_at
        times = [] if watcher.child.pollable else [now + REAP_INTERVAL]
        return min([*times, *([watcher.read_again_at] if now < watcher.read_again_at else [])], default=None)

    def collect(self, now: float) -> None:
        """Read what the watcher has written, reap it if it has ended, and fork the next one when that is due."""
        if self._watched is None:
            return
        watcher = self._watcher
        if watcher is None:
            if now >= self._restarts.start_at:
                self._start(self._watched, now)
            return
        status = watcher.child.reap()
        # Messages first: a watcher that cannot watch says why and ends.
        if now >= watcher.read_again_at or status is not None:
            self._read(watcher, now)
        if status is not None:
            self._on_death(watcher, watcher.reason or f"the watcher died: {status.describe()}", now)

    def close(self) -> None:
        """Kill and reap the watcher."""
        if self._watcher is not None:
            self._watcher.child.signal(signal.SIGKILL)
            self._watcher.child.wait()
            self._forget(self._watcher)

    # --- the process --------------------------------------------------------------------------------------------------

    def _start(self, watched: Watched, now: float) -> None:
        self._restarts.on_start(now)
        try:
            reader, writer = (Descriptor(fd) for fd in os.pipe())
        except OSError as exc:
            self._retry(reason_of(exc), None, now)
            return
        try:
            os.set_blocking(reader.fileno(), False)
            self._system.close_in_child(reader)
            child = self._system.fork()
        except (OSError, MemoryError) as exc:
            reader.close()
            writer.close()
            self._retry(reason_of(exc), None, now)
            return
        if child is None:
            run_watcher(watched, writer, self._parent, self._since)
        writer.close()
        self._watcher = _Watcher(child, reader)

    def _read(self, watcher: _Watcher, now: float) -> None:
        watcher.read_again_at = now + READ_INTERVAL
        try:
            data = os.read(watcher.pipe.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            # A watcher that has closed its pipe is of no use, and would be read for ever.
            watcher.child.signal(signal.SIGKILL)
        for message in watcher.decoder.feed(data):
            match message:
                case ReadyMessage() if watcher.ready_at is None and self._watched is not None:
                    watcher.ready_at = now
                    self._restarts.on_work()
                    self._emit(WatchingSources(escape_controls(", ".join(self._watched.directories))))
                case ChangedMessage():
                    self._change = escape_ascii(message.files)
                    self._since = time.time() - _OVERLAP
                case UnableMessage():
                    watcher.reason = escape_ascii(message.reason)

    def _on_death(self, watcher: _Watcher, reason: str, now: float) -> None:
        self._forget(watcher)
        self._retry(reason, None if watcher.ready_at is None else now - watcher.ready_at, now)

    def _retry(self, reason: str, uptime: float | None, now: float) -> None:
        """Fork the next watcher later. Say so once, until one of them watches again."""
        self._restarts.on_failure(uptime, now, lambda wait: self._emit(SourcesUnwatched(reason, wait)))

    def _forget(self, watcher: _Watcher) -> None:
        watcher.child.close()
        watcher.pipe.close()
        self._watcher = None
