"""Signals: held back around a fork, put right in a child, and taken one by one by a parent that polls.

What a signal means is decided elsewhere. No event loop appears here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from types import FrameType
from typing import NamedTuple

from .descriptors import Descriptor

#: Raised by the faulting instruction itself: blocking one turns a report by faulthandler into a silent death.
_SYNCHRONOUS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
BLOCKABLE = frozenset(signal.valid_signals()) - _SYNCHRONOUS
_SI_KERNEL = 0x80  # asm-generic/siginfo.h


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Hold every signal back (but those of a faulting instruction), then restore the mask as it was."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKABLE)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def unblock_signals() -> None:
    """Let every signal through: the last step of a child, when its own handlers are in."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def restore_default_signals() -> None:
    """Give this process the signal state of a freshly started Python; the mask stays as it is. Main thread only.

    Handlers go back to the default action (SIGINT: KeyboardInterrupt); what is ignored stays ignored (SIGPIPE, or
    SIGHUP under nohup). The wake-up descriptor is cleared: a child that kept it would wake its parent with its own
    signals.
    """
    signal.set_wakeup_fd(-1)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    for sig in signal.valid_signals():
        if callable(signal.getsignal(sig)):
            signal.signal(sig, signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL)


@contextlib.contextmanager
def startup_signals(ends: Collection[int], passes: Collection[int]) -> Iterator[None]:
    """While a program starts, and does not heed signals as it will: those in `ends` raise SystemExit(0), so that what
    was made is put away, and those in `passes` mean nothing yet. Puts back what was there before. Main thread only."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
    for sig in (*ends, *passes):
        if signal.getsignal(sig) is not signal.SIG_IGN:
            before[sig] = signal.signal(sig, end if sig in ends else ignore_signals)
    try:
        yield
    finally:
        for sig, handler in before.items():
            # One that was made to be ignored meanwhile stays so: the program is at its end.
            if handler is not None and signal.getsignal(sig) is not signal.SIG_IGN:
                signal.signal(sig, handler)


class Received(NamedTuple):
    """One signal; `from_terminal` when a terminal sent it (Ctrl-C), which tells its whole foreground process group."""

    number: int
    from_terminal: bool


class SignalQueue:
    """Takes `signals` for a process that polls, one by one and in no handler, until `release`. Main thread only.

    On Linux they are blocked and read from a signalfd, which alone knows who sent them. Another thread that does not
    block them may get them all the same, and elsewhere there is no signalfd: an empty handler stands by, and the
    wake-up descriptor (`signal.set_wakeup_fd`) says which came. An ignored signal stays ignored, unless it is one of
    `regardless`.
    """

    def __init__(self, signals: Sequence[int], regardless: Collection[int] = ()) -> None:
        heeded = [sig for sig in signals if sig in regardless or signal.getsignal(sig) is not signal.SIG_IGN]
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._reader, self._writer = Descriptor(reader), Descriptor(writer)
        self._wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        for sig in heeded:
            self._handlers[sig] = signal.signal(sig, ignore_signals)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        fd = _open_signalfd(heeded)
        self._signalfd = None if fd is None else Descriptor(fd)
        if self._signalfd is not None:
            signal.pthread_sigmask(signal.SIG_BLOCK, heeded)

    def descriptors(self) -> list[Descriptor]:
        """What this process alone must hold (`System.close_in_child`)."""
        return [self._reader, self._writer, *([self._signalfd] if self._signalfd else [])]

    def readable(self) -> list[Descriptor]:
        """What to poll for input: any of them wakes for a signal."""
        return [self._reader, *([self._signalfd] if self._signalfd else [])]

    def take(self) -> list[Received]:
        """The signals that came since the last call. Never blocks."""
        came = [Received(number, False) for number in _read(self._reader) if number in self._handlers]
        if self._signalfd is not None:
            # struct signalfd_siginfo: signo, errno, code, and padding to 128 bytes (signalfd(2)).
            for number, _, code in struct.iter_unpack("=Iii116x", _read(self._signalfd)):
                came.append(Received(number, code == _SI_KERNEL))
        return came

    def release(self, ignoring: Collection[int] = ()) -> None:
        """Put back what was there before, and close the descriptors. A signal not taken yet finds the old handler.

        Those in `ignoring` are ignored from here on instead: there is no moment at which one of them does anything.
        """
        for sig, handler in self._handlers.items():
            if sig in ignoring:
                signal.signal(sig, signal.SIG_IGN)
            elif handler is not None:  # one that C installed cannot be put back from here
                signal.signal(sig, handler)
        signal.set_wakeup_fd(self._wakeup)
        for descriptor in self.descriptors():
            descriptor.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def ignore_signals(signum: int, frame: FrameType | None) -> None:
    """A handler for a signal that means nothing. Unlike SIG_IGN it does not outlive exec (execve(2)): a program that is
    started from here would never know why it cannot be interrupted."""


def disregard(signals: Collection[int]) -> None:
    """Have these mean nothing, and interrupt no system call. Main thread only."""
    for sig in signals:
        signal.signal(sig, ignore_signals)
        signal.siginterrupt(sig, False)


def _read(descriptor: Descriptor) -> bytes:
    try:
        return os.read(descriptor.fileno(), 4096)
    except BlockingIOError:
        return b""


def _open_signalfd(signals: Sequence[int]) -> int | None:
    if sys.platform != "linux":
        return None
    try:
        signalfd = ctypes.CDLL(None).signalfd
    except (OSError, AttributeError):
        return None
    # sigset_t: 1024 bits in unsigned longs, bit n-1 for signal n (glibc and musl read no more than they need).
    bits = sum(1 << (sig - 1) for sig in signals)
    width = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (1024 // width))(*[bits >> shift & (1 << width) - 1 for shift in range(0, 1024, width)])
    fd: int = signalfd(-1, ctypes.byref(mask), os.O_NONBLOCK | os.O_CLOEXEC)
    return fd if fd >= 0 else None
