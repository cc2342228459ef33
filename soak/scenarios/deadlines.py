"""Thousands of connections that are silent, fall silent, or trickle: each is ended when its time is up, not before."""

from __future__ import annotations

import contextlib
import gc
import heapq
import select
import socket
import time

from .. import proc
from ..prober import probing
from ..report import Row, Verdict, in_words, percentiles
from ..scenario import Context
from ..servers import serving

CONNECTIONS = 9_000
FIRST_BYTE, IDLE, AGE = 6.0, 8.0, 14.0
#: Seconds between the bytes of those that trickle: each renews the deadline of silence.
TRICKLE = 2.0
#: Seconds over which they connect, so that their deadlines do not coincide.
SPREAD = 4.0
#: Seconds in which nothing happens, and the part of a processor that deadlines may cost then.
IDLE_SECONDS, COST = 20.0, 0.001
#: Of the 99th percentile.
LATE = 0.02


class _Crowd:
    """Connections of three kinds, and by how much each was ended late."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._epoll = select.epoll()
        self._socks: dict[int, tuple[str, socket.socket, float]] = {}
        self._due: list[tuple[float, int]] = []
        self.late: dict[str, list[float]] = {"silent": [], "fell silent": [], "trickling": []}

    def __len__(self) -> int:
        return len(self._socks)

    def join(self, kind: str) -> None:
        """One more, from one of several addresses."""
        sock = socket.create_connection(("127.0.0.1", self._port), 30)
        sock.setblocking(False)
        now = time.monotonic()
        if kind == "silent":
            due = now + FIRST_BYTE
        elif kind == "fell silent":
            sock.send(b"x")
            due = time.monotonic() + IDLE
        else:
            sock.send(b"x")
            due = now + AGE
            heapq.heappush(self._due, (now + TRICKLE, sock.fileno()))
        self._socks[sock.fileno()] = (kind, sock, due)
        self._epoll.register(sock, select.EPOLLRDHUP)

    def turn(self, seconds: float) -> None:
        """Close the connections that the server ended, and send the trickle of the others."""
        for fd, _ in self._epoll.poll(seconds, 100):
            kind, sock, due = self._socks.pop(fd)
            self.late[kind].append(time.monotonic() - due)
            sock.close()
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, fd = heapq.heappop(self._due)
            if fd in self._socks:
                with contextlib.suppress(OSError):
                    self._socks[fd][1].send(b"x")
                heapq.heappush(self._due, (now + TRICKLE, fd))

    def close(self) -> None:
        for _, sock, _ in self._socks.values():
            sock.close()
        self._epoll.close()


def run(context: Context) -> list[Row]:
    """Open as many silent, idle and trickling connections, while an honest client asks."""
    count = context.count(CONNECTIONS, 90)
    options = ("--first-byte-timeout", str(FIRST_BYTE), "--idle-timeout", str(IDLE), "--max-age", str(AGE))
    with serving("soak.services.sharing:handle", "--max-connections", str(count + 100), *options, workers=1) as fleet:
        calm = _calm(fleet.port)
        gc.disable()
        crowd = _Crowd(fleet.port)
        with contextlib.closing(crowd):
            begun = time.monotonic()
            for number in range(count):
                crowd.join(("silent", "fell silent", "trickling")[number % 3])
                while time.monotonic() < begun + number * SPREAD / count:
                    crowd.turn(0.0005)
            with probing(fleet.port) as prober:
                end = time.monotonic() + 2.0
                while time.monotonic() < end:
                    crowd.turn(0.002)
                answers = prober.stop()
            while crowd and time.monotonic() < begun + AGE + SPREAD + 10:
                crowd.turn(0.002)
            left = len(crowd)
        gc.enable()
    late = [each for some in crowd.late.values() for each in some]
    p99 = percentiles(late)["p99"]
    # A millisecond: the client's clock starts when it has sent, the server's when it has seen it.
    early = sum(each < -0.02 for each in late)
    good = not left and not early and p99 <= LATE
    return [
        Row(
            "deadlines",
            f"{count:,} connections in one worker, silent, fallen silent, or trickling a byte each {TRICKLE:g} s: "
            f"ended after the deadlines of the first byte ({FIRST_BYTE:g} s), silence ({IDLE:g} s), age ({AGE:g} s)",
            f"{early} early, {left} never; late: {in_words(late)}",
            count,
            f"none early; p99 <= {LATE * 1000:g} ms late",
            Verdict.GOOD if good else Verdict.BAD,
            details=(
                *(f"{kind}: late {in_words(some)}" for kind, some in crowd.late.items()),
                f"an honest connection is answered after {in_words(answers)}; without others {in_words(calm)}",
            ),
        ),
        _idle(count, context.seconds(IDLE_SECONDS, 2.0)),
    ]


def _idle(count: int, seconds: float) -> Row:
    """What deadlines cost that do not pass."""
    far = ("--first-byte-timeout", "3600", "--idle-timeout", "3600", "--max-age", "3600")
    spent = [_at_rest(count, seconds, options) for options in (far, ())]
    return Row(
        "deadlines",
        f"{count:,} connections with three deadlines each, of which none passes: the worker's processor time",
        f"{spent[0]:.3%} of a processor (without deadlines: {spent[1]:.3%})",
        count,
        f"<= {COST:.1%} more",
        Verdict.GOOD if spent[0] - spent[1] <= COST else Verdict.BAD,
    )


def _at_rest(count: int, seconds: float, options: tuple[str, ...]) -> float:
    with (
        serving("soak.services.sharing:handle", "--max-connections", str(count + 100), *options, workers=1) as fleet,
        contextlib.ExitStack() as stack,
    ):
        (worker,) = fleet.wait_ready(1)
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", fleet.port), 30))
            sock.sendall(b"who\n")
            sock.recv(100)
        time.sleep(1.0)
        before = proc.processor_seconds(worker)
        time.sleep(seconds)
        return (proc.processor_seconds(worker) - before) / seconds


def _calm(port: int) -> list[float]:
    with probing(port) as prober:
        time.sleep(2.0)
        return prober.stop()
