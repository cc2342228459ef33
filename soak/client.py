"""The pump: carries many attempts at once, from connect to a clean end on both sides, each into one bin of the ledger.

On bare epoll, as it shares two cores with the server that it judges. What attempts there are, and when, is decided in
`load.py` and in the scenarios; what one of them is, in `attempt.py`.
"""

from __future__ import annotations

import errno
import heapq
import math
import select
import socket
import ssl
import time
from collections.abc import Callable

from . import payload
from .attempt import Attempt, Phase, Script, Target, bin_of
from .errors import HarnessError
from .ledger import Bin, Ledger

#: Seconds between looks at deadlines.
SWEEP = 0.25
#: How much is received with one call.
CHUNK = 1 << 18
#: What is no answer of a server's, but our own shortage.
OURS = {errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EACCES, errno.EADDRINUSE}
_IP_BIND_ADDRESS_NO_PORT = 24  # ip(7); `socket` has no name for it


class Pump:
    """Carries attempts; every one ends in the ledger. `connect_timeout` and `read_timeout` in seconds.

    `answered` is called with each attempt that got a right answer, `settled` with each that has ended, before its
    socket is closed. Raises HarnessError from any call.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        connect_timeout: float = 10.0,
        read_timeout: float = 30.0,
        context: ssl.SSLContext | None = None,
        first_sequence: int = 1,
        answered: Callable[[Attempt], object] = lambda attempt: None,
        settled: Callable[[Attempt], object] = lambda attempt: None,
    ) -> None:
        self.ledger = ledger
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._context = context
        self._sequence = first_sequence
        self._answered = answered
        self._settled = settled
        self._epoll = select.epoll()
        self._attempts: dict[int, Attempt] = {}
        self._due: list[tuple[float, int, Attempt]] = []
        self._sweep_at = 0.0

    def close(self) -> None:
        """Drop what is open; those attempts stay unsettled."""
        for attempt in list(self._attempts.values()):
            attempt.sock.close()
        self._attempts.clear()
        self._epoll.close()

    @property
    def open(self) -> int:
        """Attempts that have not ended."""
        return len(self._attempts)

    def watch(self, fd: int) -> None:
        """Have `turn` return at once when `fd` is readable."""
        self._epoll.register(fd, select.EPOLLIN)

    # --- what attempts there are --------------------------------------------------------------------------------------

    def begin(self, target: Target, script: Script) -> Attempt:
        """Begin an attempt. A request that waits for nothing is sent at once, as far as the kernel takes it."""
        unix = isinstance(target.address, str)
        try:
            sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM)
        except OSError as exc:
            raise HarnessError(f"no socket for a client: {exc}") from exc
        sock.setblocking(False)
        if not unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if target.source:
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((target.source, 0))
        code = sock.connect_ex(target.address)
        if code in OURS:
            sock.close()
            raise HarnessError(f"connecting to {target.address} from {target.source or 'any'}: {errno.errorcode[code]}")
        attempt = Attempt(sock, f"{target.name} {script.name}", self.ledger.begin(), script.steps)
        self._attempts[sock.fileno()] = attempt
        attempt.deadline = attempt.began + self._connect_timeout
        if code not in (0, errno.EINPROGRESS):
            self._fail(attempt, OSError(code, errno.errorcode[code]))
        elif target.tls:
            self._want(attempt, select.EPOLLOUT)
        else:
            self._guard(self._try_first, attempt)
        return attempt

    def go(self, attempt: Attempt) -> None:
        """Take the step that an attempt waits for; nothing if it has ended. Raises HarnessError if it does not wait."""
        if attempt.phase is Phase.SETTLED:
            return
        if attempt.phase is not Phase.WAITING:
            raise HarnessError(f"an attempt in phase {attempt.phase.name.lower()} was told to go on")
        self._guard(self._ask, attempt)

    def turn(self, timeout: float) -> None:
        """Serve what is ready and what is due, waiting for at most `timeout` seconds."""
        now = time.monotonic()
        if self._due:
            timeout = min(timeout, self._due[0][0] - now)
        for fd, mask in self._epoll.poll(max(0.0, min(timeout, SWEEP))):
            attempt = self._attempts.get(fd)
            if attempt is not None:
                self._guard(self._ready, attempt, mask)
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            self.go(heapq.heappop(self._due)[2])
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP
            self._expire(now)

    def run(self, deadline: float) -> None:
        """Until every attempt has ended. Raises HarnessError after `deadline` seconds."""
        end = time.monotonic() + deadline
        while self._attempts:
            if time.monotonic() > end:
                raise HarnessError(f"{self.open} attempts have not ended in {deadline:g} s, in spite of their timeouts")
            self.turn(SWEEP)

    def _expire(self, now: float) -> None:
        for attempt in [each for each in self._attempts.values() if now >= each.deadline]:
            connecting = attempt.phase is Phase.CONNECTING
            note = f"in phase {attempt.phase.name.lower()}, step {attempt.step + 1} of {len(attempt.steps)}"
            self._end(attempt, Bin.CONNECT_TIMEOUT if connecting else Bin.READ_TIMEOUT, note)

    # --- one attempt, step by step ------------------------------------------------------------------------------------

    def _guard(self, what: Callable[..., None], attempt: Attempt, *args: object) -> None:
        try:
            what(attempt, *args)
        except payload.Wrong as exc:
            self._end(attempt, Bin.WRONG, str(exc))
        except (ssl.SSLWantReadError, BlockingIOError):
            self._want(attempt, select.EPOLLIN | (select.EPOLLOUT if attempt.unsent else 0))
        except ssl.SSLWantWriteError:
            self._want(attempt, select.EPOLLIN | select.EPOLLOUT)
        except OSError as exc:
            self._fail(attempt, exc)

    def _try_first(self, attempt: Attempt) -> None:
        """A connect over loopback is done before it says so: most requests are taken at once, without an event."""
        if attempt.steps[0][0]:
            self._want(attempt, select.EPOLLOUT)
            return
        attempt.ask(self._next_sequence())
        try:
            attempt.unsent = attempt.unsent[attempt.sock.send(attempt.unsent) :]
        except BlockingIOError:
            attempt.phase = Phase.CONNECTING
            self._want(attempt, select.EPOLLOUT)
            return
        except OSError:
            # What kept the connect from succeeding is told once, here.
            attempt.phase = Phase.CONNECTING
            raise
        self._sent(attempt)

    def _ready(self, attempt: Attempt, mask: int) -> None:
        phase = attempt.phase
        if phase is Phase.CONNECTING:
            self._connected(attempt)
        elif phase is Phase.HANDSHAKE:
            self._handshake(attempt)
        elif phase is Phase.ENDING and isinstance(attempt.sock, ssl.SSLSocket):
            self._say_end(attempt)
        else:
            if mask & select.EPOLLOUT and attempt.unsent:
                self._send(attempt)
            if mask & ~select.EPOLLOUT:
                self._receive(attempt)

    def _connected(self, attempt: Attempt) -> None:
        code = attempt.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, errno.errorcode.get(code, str(code)))
        if attempt.kind.startswith("tls"):
            assert self._context is not None
            attempt.phase = Phase.HANDSHAKE
            attempt.deadline = time.monotonic() + self._read_timeout
            attempt.sock = self._context.wrap_socket(
                attempt.sock, server_hostname="localhost", do_handshake_on_connect=False, suppress_ragged_eofs=False
            )
            self._handshake(attempt)
        elif attempt.unsent:
            attempt.phase = Phase.EXCHANGING
            self._send(attempt)
        else:
            self._next_step(attempt)

    def _handshake(self, attempt: Attempt) -> None:
        assert isinstance(attempt.sock, ssl.SSLSocket)
        attempt.sock.do_handshake()
        self._next_step(attempt)

    def _next_step(self, attempt: Attempt) -> None:
        if attempt.step == len(attempt.steps):
            attempt.phase = Phase.ENDING
            attempt.deadline = time.monotonic() + self._read_timeout
            self._say_end(attempt)
            return
        wait = attempt.steps[attempt.step][0]
        if not wait:
            self._ask(attempt)
            return
        attempt.phase = Phase.WAITING
        attempt.deadline = math.inf
        if wait < math.inf:
            heapq.heappush(self._due, (time.monotonic() + wait, attempt.number, attempt))
        self._want(attempt, select.EPOLLIN)

    def _ask(self, attempt: Attempt) -> None:
        attempt.ask(self._next_sequence())
        self._send(attempt)

    def _send(self, attempt: Attempt) -> None:
        attempt.deadline = time.monotonic() + self._read_timeout
        attempt.unsent = attempt.unsent[attempt.sock.send(attempt.unsent) :]
        self._sent(attempt)

    def _sent(self, attempt: Attempt) -> None:
        attempt.deadline = time.monotonic() + self._read_timeout
        self._want(attempt, select.EPOLLIN | (select.EPOLLOUT if attempt.unsent else 0))

    def _receive(self, attempt: Attempt) -> None:
        # TLS holds bytes that epoll does not know of, so it is read until it says that there are no more.
        while True:
            data = attempt.sock.recv(CHUNK)
            if not data:
                in_time = attempt.phase is Phase.ENDING
                self._end(attempt, Bin.OK if in_time else Bin.EARLY_END, f"in phase {attempt.phase.name.lower()}")
                return
            if attempt.take(data):
                self.ledger.exchanges += 1
                self._answered(attempt)
                self._next_step(attempt)
                if attempt.phase is not Phase.WAITING:
                    return
            if not isinstance(attempt.sock, ssl.SSLSocket):
                return

    def _say_end(self, attempt: Attempt) -> None:
        """Ours; a plain server's comes with `_receive`, a TLS server's with the return of unwrap."""
        if isinstance(attempt.sock, ssl.SSLSocket):
            attempt.sock.unwrap()
            self._end(attempt, Bin.OK)
        else:
            attempt.sock.shutdown(socket.SHUT_WR)
            self._want(attempt, select.EPOLLIN)

    # --- how it ends --------------------------------------------------------------------------------------------------

    def _fail(self, attempt: Attempt, exc: OSError) -> None:
        if exc.errno in OURS:
            raise HarnessError(f"{attempt.kind}: {exc}") from exc
        self._end(attempt, bin_of(attempt, exc), f"{type(exc).__name__}: {exc}, in phase {attempt.phase.name.lower()}")

    def _end(self, attempt: Attempt, end: Bin, note: str = "") -> None:
        self.ledger.settle(attempt.number, attempt.kind, end, "" if end is Bin.OK else note)
        attempt.phase, attempt.end = Phase.SETTLED, end
        del self._attempts[attempt.fd]
        self._settled(attempt)
        attempt.sock.close()

    def _want(self, attempt: Attempt, interest: int) -> None:
        if attempt.phase is Phase.SETTLED or attempt.interest == interest:
            return
        if attempt.interest:
            self._epoll.modify(attempt.fd, interest)
        else:
            self._epoll.register(attempt.fd, interest)
        attempt.interest = interest

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence
