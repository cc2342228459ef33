"""One attempt of a client: what it is to do, how far it is, and which bin an error puts it into.

No system call is made here; `client.py` carries attempts from connect to their end.
"""

from __future__ import annotations

import enum
import errno
import math
import socket
import ssl
import time
from dataclasses import dataclass

from . import payload
from .ledger import Bin

#: The last is what a shutdown says of a connection that was reset before.
_RESET = {errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ENOTCONN}


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect to: `(host, port)` or the path of a unix socket; `source` is an address of ours to come from."""

    address: tuple[str, int] | str
    tls: bool = False
    source: str = ""

    @property
    def name(self) -> str:
        return "tls" if self.tls else "unix" if isinstance(self.address, str) else "tcp"


@dataclass(frozen=True, slots=True)
class Script:
    """The steps of one attempt: for each, the seconds to wait (inf: until `Pump.go`) and the bytes to exchange then."""

    name: str
    steps: tuple[tuple[float, int], ...]


class Phase(enum.Enum):
    """The life of an attempt."""

    CONNECTING = enum.auto()
    HANDSHAKE = enum.auto()
    WAITING = enum.auto()
    """Connected, and silent until the next step."""
    EXCHANGING = enum.auto()
    ENDING = enum.auto()
    """All answers were right; our end is said, and the server's is awaited."""
    SETTLED = enum.auto()


class Attempt:
    """One connection. `end` is its bin once it has one, `pid` the number of what answered last; times are
    monotonic."""

    __slots__ = (
        "_sequence",
        "_size",
        "answered",
        "began",
        "deadline",
        "end",
        "fd",
        "interest",
        "kind",
        "number",
        "phase",
        "pid",
        "received",
        "sock",
        "step",
        "steps",
        "unsent",
    )

    def __init__(self, sock: socket.socket, kind: str, number: int, steps: tuple[tuple[float, int], ...]) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.kind = kind
        self.number = number
        self.steps = steps
        self.step = 0
        self.phase = Phase.CONNECTING
        self.deadline = math.inf
        self.interest = 0
        self.unsent = memoryview(b"")
        self.received = bytearray()
        self.pid = 0
        self.end: Bin | None = None
        self.began = time.monotonic()
        self.answered = 0.0
        self._sequence = 0
        self._size = 0

    def ask(self, sequence: int) -> None:
        """The next request is to be sent."""
        self._sequence, self._size = sequence, self.steps[self.step][1]
        self.unsent = memoryview(payload.request(sequence, self._size))
        self.phase = Phase.EXCHANGING

    def take(self, data: bytes) -> bool:
        """The server's bytes; True: the answer is whole and right. Raises payload.Wrong."""
        self.received += data
        if self.phase is not Phase.EXCHANGING:
            raise payload.Wrong(f"{len(data)} bytes that were not asked for")
        left = payload.missing(self.received)
        if left < 0:
            raise payload.Wrong(f"{-left} bytes more than asked for")
        if left:
            return False
        self.pid = payload.verify(self.received, self._sequence, self._size)
        self.received = bytearray()
        self.step += 1
        self.answered = time.monotonic()
        return True

    @property
    def heard(self) -> bool:
        """Whether a byte of the server's has come."""
        return self.answered > 0 or bool(self.received)


def bin_of(attempt: Attempt, exc: OSError) -> Bin:
    """Where an attempt belongs that ends with `exc`."""
    if attempt.phase is Phase.CONNECTING:
        if exc.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.EAGAIN):
            # The last is a unix socket's way to say that its queue is full.
            return Bin.REFUSED
        return Bin.CONNECT_TIMEOUT if exc.errno == errno.ETIMEDOUT else Bin.RESET_BEFORE
    if isinstance(exc, ssl.SSLEOFError):
        return Bin.EARLY_END
    if exc.errno in _RESET:
        return Bin.RESET_AFTER if attempt.heard else Bin.RESET_BEFORE
    if exc.errno == errno.ETIMEDOUT:
        return Bin.READ_TIMEOUT
    return Bin.WRONG
