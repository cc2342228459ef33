"""The access log: one line for each connection that has ended, as text or as JSON.

Lines are collected for a moment and written together, and nothing waits for a reader. What cannot be written is dropped
and counted. The file is opened by the supervisor (`reopen.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable

from ..core.ended_connection import EndedConnection
from ..errors import reason_of
from ..events import AccessLogLost, Emit
from ..text import escape_ascii, format_address
from .output import ATOMIC_BYTES, Output

#: Seconds that a line waits for others to be written with it.
FLUSH_DELAY = 0.1
#: Bytes that are written at once, without waiting for others.
FLUSH_AT = 16 * 1024
#: Bytes that are kept for a reader that does not read; further lines are dropped.
MAX_BUFFERED = 256 * 1024
#: Bytes of one write to a file.
_FILE_CHUNK = 64 * 1024
#: Characters of an address.
_ADDRESS_LIMIT = 128

_STUCK = "its reader does not read"

Format = Callable[[EndedConnection, float], bytes]


class AccessLog:
    """Writes what it is called with to `output`, in the loop that calls it. Close it at the end.

    `on_dropped` gets the number of lines that could not be written; `emit` an event about them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        output: Output,
        format: Format,
        emit: Emit,
        on_dropped: Callable[[int], object],
    ) -> None:
        self._loop = loop
        self._output = output
        self._format = format
        self._emit = emit
        self._on_dropped = on_dropped
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._chunk = _FILE_CHUNK if output.is_file else ATOMIC_BYTES
        self._lost = 0
        self._reason = _STUCK
        self._closed = False
        self._pid = os.getpid()

    def __call__(self, ended: EndedConnection) -> None:
        line = self._format(ended, time.time())
        if self._closed or len(self._buffer) + len(line) > MAX_BUFFERED:
            self._lost += 1
            return
        self._buffer += line
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH_DELAY, self._on_timer)
        elif FLUSH_AT <= len(self._buffer) < FLUSH_AT + len(line):
            # Once: a reader that does not take it now is asked again by the timer.
            self._write()

    def close(self) -> None:
        """Write what is left, and drop what cannot be written now (idempotent).

        Not in a child that a program has forked, which has a copy of the lines.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._write()
        self._drop(_STUCK)
        self._report()
        self._output.close()

    def _on_timer(self) -> None:
        self._timer = None
        self._write()
        self._report()
        if self._buffer:
            self._timer = self._loop.call_later(FLUSH_DELAY, self._on_timer)

    def _write(self) -> None:
        buffer = self._buffer
        try:
            while buffer:
                # Whole lines, because other processes write to the same pipe between two writes.
                end = buffer.rfind(b"\n", 0, self._chunk) + 1
                del buffer[: self._output.send(bytes(buffer[: end or self._chunk]))]
        except BlockingIOError:
            pass
        except OSError as exc:
            self._drop(reason_of(exc))

    def _drop(self, reason: str) -> None:
        if self._buffer:
            self._lost += self._buffer.count(b"\n")
            self._reason = reason
            self._buffer.clear()

    def _report(self) -> None:
        if self._lost:
            lost, self._lost = self._lost, 0
            self._on_dropped(lost)
            self._emit(AccessLogLost(lost, self._reason))


# --- a line -----------------------------------------------------------------------------------------------------------


def text_format(worker: int) -> Format:
    """Return what formats a line of text: ten words, of which a missing one is `-`."""
    stamp = _Stamp()

    def format(ended: EndedConnection, now: float) -> bytes:
        return (
            f"{stamp(now)} {_address(ended.address)} {_address(ended.local)} {ended.seconds:.3f} {ended.received} "
            f"{ended.sent} {ended.tls or '-'} {ended.reason} {worker} {_address(ended.proxy)}\n"
        ).encode("ascii", "backslashreplace")

    return format


def json_format(worker: int) -> Format:
    """Return what formats a line of JSON, in ASCII."""
    stamp, pid = _Stamp(), os.getpid()

    def format(ended: EndedConnection, now: float) -> bytes:
        # By hand, because json.dumps would double the time of the line.
        tls = f'"{ended.tls}"' if ended.tls else "null"
        proxy = "null" if ended.proxy is None else _quoted(ended.proxy)
        return (
            f'{{"time": "{stamp(now)}", "peer": {_quoted(ended.address)}, "listener": {_quoted(ended.local)}, '
            f'"seconds": {ended.seconds:.6f}, "received": {ended.received}, "sent": {ended.sent}, "tls": {tls}, '
            f'"reason": "{ended.reason}", "worker": {worker}, "pid": {pid}, "proxy": {proxy}}}\n'
        ).encode("ascii", "backslashreplace")

    return format


def _quoted(address: object) -> str:
    text = _address(address)
    return json.dumps(text) if '"' in text or "\\" in text else f'"{text}"'


def _address(address: object) -> str:
    """Return an address as one word: without spaces, which the name of a unix socket may have."""
    if type(address) is tuple:
        # Numbers that the kernel has put into words: nothing of the peer's.
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if address is None:
        return "-"
    return escape_ascii(format_address(address), _ADDRESS_LIMIT).replace(" ", "\\x20")


class _Stamp:
    """Formats times as the log does: local, in milliseconds, with the offset from UTC (RFC 3339)."""

    def __init__(self) -> None:
        self._second = -1
        self._start = self._end = ""

    def __call__(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            # Once a second, because strftime costs more than the line.
            local = time.localtime(second)
            offset = time.strftime("%z", local)
            self._second = second
            self._start = time.strftime("%Y-%m-%dT%H:%M:%S", local)
            self._end = f"{offset[:3]}:{offset[3:]}"
        return f"{self._start}.{int(now * 1000) % 1000:03d}{self._end}"
