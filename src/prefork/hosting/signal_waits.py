"""Let a program whose main thread waits for signals be spoken to by the supervisor, and see nothing of it.

sigwait(3) runs no Python handler, so a request would wait as long as the program does. pause(2) returns after any
handler, so a program would end at a request to reopen a log. What a request leads to is not known here.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Mapping

from .host import Host


class SignalWaits:
    """Replaces `sigwait` and `pause` of `signal` in this process, by `install`, for good."""

    def __init__(self, host: Host, requests: Mapping[int, Callable[[], object]]) -> None:
        self._host = host
        self._requests = dict(requests)
        """What each signal of the supervisor leads to."""
        self._handled = 0
        self._sigwait = signal.sigwait
        self._pause = signal.pause

    def install(self) -> None:
        """Handle the supervisor's signals from now on.

        They interrupt system calls: otherwise a main thread that waits for a lock would run no handler (signal(7)).
        """
        for number in self._requests:
            signal.signal(number, lambda signum, frame: self._handle(signum))
        signal.sigwait = self.sigwait
        signal.pause = self.pause

    def _handle(self, number: int) -> None:
        self._handled += 1
        self._requests[number]()

    def sigwait(self, sigset: Iterable[int]) -> int:
        """Wait as `signal.sigwait` does, and handle the supervisor's signals meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            return self._sigwait(sigset)
        wanted = set(sigset)
        own = set(self._requests) - wanted
        self._host.awaited = frozenset(wanted & signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        try:
            while (number := self._sigwait(wanted | own)) in own:
                self._handle(number)
            return number
        finally:
            self._host.awaited = frozenset()

    def pause(self) -> None:
        """Wait as `signal.pause` does, and longer if only the supervisor's signals came."""
        handled = None
        while handled != self._handled:
            handled = self._handled
            self._pause()
