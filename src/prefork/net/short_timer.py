"""A timer for delays below a millisecond, to which asyncio and uvloop round up theirs.

On Linux a timerfd that the loop watches, elsewhere the loop's own timer.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable


class _TimerSpec(ctypes.Structure):
    """struct itimerspec: the interval, then the first expiration (timerfd_create(2))."""

    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class ShortTimer:
    """Calls `callback` once, when the seconds of `start` have passed. Owns a descriptor until `close`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._timer: asyncio.TimerHandle | None = None
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        # TFD_NONBLOCK and TFD_CLOEXEC are the flags of open(2).
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._fd = -1 if self._libc is None else self._libc.timerfd_create(time.CLOCK_MONOTONIC, flags)
        if self._fd >= 0:
            try:
                loop.add_reader(self._fd, self._expired)
            except OSError:
                # No memory for another epoll watch. The loop's own timer is coarser, and needs none.
                os.close(self._fd)
                self._fd = -1

    def start(self, seconds: float) -> None:
        """Set the timer, in place of what it was set to."""
        if self._fd >= 0 and self._libc is not None:
            whole = int(seconds)
            # At least 1 ns, because all zero would stop the timer.
            spec = _TimerSpec(0, 0, whole, max(1, int((seconds - whole) * 1e9)))
            self._libc.timerfd_settime(self._fd, 0, ctypes.byref(spec), None)
        else:
            self.stop()
            self._timer = self._loop.call_later(seconds, self._callback)

    def stop(self) -> None:
        if self._fd >= 0 and self._libc is not None:
            self._libc.timerfd_settime(self._fd, 0, ctypes.byref(_TimerSpec()), None)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        self.stop()
        if self._fd >= 0:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._libc = None

    def _expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._callback()
