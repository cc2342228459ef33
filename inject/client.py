"""Connections that are made while calls fail: each ends in one bin of soak's ledger."""

from __future__ import annotations

import socket
import time
from collections import Counter

from soak import payload
from soak.ledger import Bin

#: Seconds for all connections of one call together.
PATIENCE = 12.0
_SIZES = (200, 20_000, 1)


def converse(host: str, port: int, count: int) -> Counter[Bin]:
    """Open `count` connections at once, send a request on each, and return how each ended."""
    end = time.monotonic() + PATIENCE
    bins: Counter[Bin] = Counter()
    asked = []
    for number in range(1, count + 1):
        sock = socket.socket()
        asked.append((sock, number, _SIZES[number % len(_SIZES)]))
    try:
        waiting = []
        for sock, number, size in asked:
            ended = _ask(sock, (host, port), payload.request(number, size), end)
            if ended is None:
                waiting.append((sock, number, size))
            else:
                bins[ended] += 1
        for sock, number, size in waiting:
            bins[_hear(sock, number, size, end)] += 1
    finally:
        for sock, _, _ in asked:
            sock.close()
    return bins


def _left(end: float) -> float:
    return max(0.05, end - time.monotonic())


def _ask(sock: socket.socket, address: tuple[str, int], request: bytes, end: float) -> Bin | None:
    """None where an answer can be waited for."""
    sock.settimeout(_left(end))
    try:
        sock.connect(address)
    except TimeoutError:
        return Bin.CONNECT_TIMEOUT
    except OSError:
        return Bin.REFUSED
    try:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
    except TimeoutError:
        return Bin.READ_TIMEOUT
    except OSError:
        return Bin.RESET_BEFORE
    return None


def _hear(sock: socket.socket, number: int, size: int, end: float) -> Bin:
    heard = bytearray()
    try:
        while True:
            sock.settimeout(_left(end))
            data = sock.recv(1 << 18)
            if not data:
                break
            heard += data
    except TimeoutError:
        return Bin.READ_TIMEOUT
    except OSError:
        return Bin.RESET_AFTER if heard else Bin.RESET_BEFORE
    if not heard:
        return Bin.EARLY_END
    try:
        payload.verify(heard, number, size) if len(heard) >= payload.HEAD.size else _refuse()
    except payload.Wrong:
        return Bin.WRONG
    return Bin.OK


def _refuse() -> None:
    raise payload.Wrong("less than a head")
