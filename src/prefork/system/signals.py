"""Signals: blocked around a fork, reset in a child, and queued for a parent that polls.

The callers decide what a signal means. No event loop appears here.
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

#: Raised by the faulting instruction itself. If one were blocked, the process would die without faulthandler's report.
_SYNCHRONOUS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
BLOCKABLE = frozenset(signal.valid_signals()) - _SYNCHRONOUS
_SI_KERNEL = 0x80  # asm-generic/siginfo.h


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Block every signal except those of a faulting instruction, then restore the mask."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKABLE)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def unblock_signals() -> None:
    """Unblock every signal: a child's last step, after it has installed its own handlers."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def restore_default_signals() -> None:
    """Give this process the signal state of a freshly started Python; keep the mask. Main thread only.

    Handlers return to the default action (SIGINT: KeyboardInterrupt). Ignored signals stay ignored (SIGPIPE, or SIGHUP
    under nohup). The wake-up descriptor is cleared, otherwise the child's own signals would wake its parent.
    """
    signal.set_wakeup_fd(-1)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    for sig in signal.valid_signals():
        if callable(signal.getsignal(sig)):
            signal.signal(sig, signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL)


@contextlib.contextmanager
def startup_signals(ends: Collection[int], passes: Collection[int]) -> Iterator[None]:
    """Handle signals while a program starts, before its own handlers are installed. Main thread only.

    Signals in `ends` raise SystemExit(0), so that the caller cleans up. Signals in `passes` do nothing. The previous
    handlers are restored at the end.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
    for sig in (*ends, *passes):
        if signal.getsignal(sig) is not signal.SIG_IGN:
            before[sig] = signal.signal(sig, end if sig in ends else noop_handler)
    try:
        yield
    finally:
        for sig, handler in before.items():
            # A signal that the program set to be ignored meanwhile stays ignored: the program is ending.
            if handler is not None and signal.getsignal(sig) is not signal.SIG_IGN:
                signal.signal(sig, handler)


class Received(NamedTuple):
    """One signal; `from_terminal` if a terminal sent it (Ctrl-C) to its whole foreground process group."""

    number: int
    from_terminal: bool


class SignalQueue:
    """Queues `signals` for a process that polls, outside of handlers, until `release`. Main thread only.

    On Linux they are blocked and read from a signalfd, the only interface that says where a signal came from. Another
    thread may get a signal because it does not block it, and other systems have no signalfd. In those cases an empty
    handler runs, and the wake-up descriptor (`signal.set_wakeup_fd`) says which signal came. An ignored signal stays
    ignored unless it is in `even_if_ignored`.
    """

    def __init__(self, signals: Sequence[int], even_if_ignored: Collection[int] = ()) -> None:
        handled = [sig for sig in signals if sig in even_if_ignored or signal.getsignal(sig) is not signal.SIG_IGN]
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._reader, self._writer = Descriptor(reader), Descriptor(writer)
        self._wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        for sig in handled:
            self._handlers[sig] = signal.signal(sig, noop_handler)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        fd = _open_signalfd(handled)
        self._signalfd = None if fd is None else Descriptor(fd)
        if self._signalfd is not None:
            signal.pthread_sigmask(signal.SIG_BLOCK, handled)

    def descriptors(self) -> list[Descriptor]:
        """Return the descriptors that no child may inherit (`System.close_in_child`)."""
        return [self._reader, self._writer, *([self._signalfd] if self._signalfd else [])]

    def readable(self) -> list[Descriptor]:
        """Return the descriptors to poll for input: a signal makes one of them readable."""
        return [self._reader, *([self._signalfd] if self._signalfd else [])]

    def read(self) -> list[Received]:
        """Return the signals that arrived since the last call. Never block."""
        came = [Received(number, False) for number in _read(self._reader) if number in self._handlers]
        if self._signalfd is not None:
            # struct signalfd_siginfo: signo, errno, code, and padding to 128 bytes (signalfd(2)).
            for number, _, code in struct.iter_unpack("=Iii116x", _read(self._signalfd)):
                came.append(Received(number, code == _SI_KERNEL))
        return came

    def release(self, ignoring: Collection[int] = ()) -> None:
        """Restore the previous handlers and mask, and close the descriptors.

        Signals that were not read reach the old handlers. Signals in `ignoring` are set to SIG_IGN instead, without a
        moment at which an old handler could run.
        """
        for sig, handler in self._handlers.items():
            if sig in ignoring:
                signal.signal(sig, signal.SIG_IGN)
            elif handler is not None:  # a handler that C code installed cannot be restored from Python
                signal.signal(sig, handler)
        signal.set_wakeup_fd(self._wakeup)
        for descriptor in self.descriptors():
            descriptor.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def noop_handler(signum: int, frame: FrameType | None) -> None:
    """Do nothing, as a signal handler. Unlike SIG_IGN it does not survive exec (execve(2)): otherwise a program that
    the service starts could not be interrupted."""


def ignore_without_inheriting(signals: Collection[int]) -> None:
    """Ignore these signals in this process only; they interrupt no system call. Main thread only."""
    for sig in signals:
        signal.signal(sig, noop_handler)
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
    # sigset_t: 1024 bits in unsigned longs, bit n-1 for signal n (glibc and musl read only the part that they need).
    bits = sum(1 << (sig - 1) for sig in signals)
    width = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (1024 // width))(*[bits >> shift & (1 << width) - 1 for shift in range(0, 1024, width)])
    fd: int = signalfd(-1, ctypes.byref(mask), os.O_NONBLOCK | os.O_CLOEXEC)
    return fd if fd >= 0 else None
