"""The protocol between a client and the console of one worker: lines of JSON in both directions.

Pure. Both ends are adversaries to each other: a client may be broken, and a worker may be hostile, so every line is
bounded, and what it says is checked and escaped before it becomes a value.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..text import escape_ascii

#: The longest request, in bytes.
REQUEST_LIMIT = 64 * 1024
#: The longest line of an answer, in bytes.
LINE_LIMIT = 256 * 1024
#: The most bytes and connections that are taken from one worker.
ANSWER_LIMIT = 64 * 1024 * 1024
MAX_ROWS = 250_000
#: Peers and numbers that one request can name.
MAX_NAMED = 100
COMMANDS = ("connections", "kick", "stacks")
#: What a connection is at; "unknown" if only the kernel was asked.
PHASES = ("proxy", "handshake", "open", "closing", "lingering", "unknown")
#: Larger than any number of a worker that means something, and exact in any reader of JSON.
_MAX_NUMBER = 2**53
#: Of one stack: frames, and peers that are named of the tasks that have it.
MAX_FRAMES = 24
MAX_PEERS = 3
_TEXT_LIMIT = 200
_PEER_LIMIT = 120
_TLS_LIMIT = 16


class WorkerRow(NamedTuple):
    """One connection as its worker knows it."""

    number: int
    """Unique in this process."""
    inode: int
    """Of the socket; 0 if it is closed already."""
    peer: str
    phase: str
    age: float
    """Seconds since it was accepted."""
    unsent: int
    """Bytes that the handler has written and the kernel has not taken."""
    tls: str
    """The version; "" in the clear."""
    proxy: str = ""
    """The address of the proxy that told the peer's; "" without one."""


class Frame(NamedTuple):
    """One frame of a stack."""

    file: str
    line: int
    function: str


class Stack(NamedTuple):
    """Where tasks, or a thread, are at: the frames from the outermost to the innermost, and what is awaited there."""

    name: str
    """Of the task or the thread; of several tasks that of one."""
    tasks: int
    """How many have the same frames; 1 for a thread."""
    frames: tuple[Frame, ...]
    waits_for: str
    """What the innermost frame awaits; "" for a thread."""
    peers: tuple[str, ...]
    """Of connections whose tasks these are; MAX_PEERS at the most."""
    thread: bool


@dataclass(frozen=True, slots=True)
class ConsoleRequest:
    """One of COMMANDS. `kick` names peers (an address with or without a port, or a network) or numbers."""

    command: str
    peers: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    by: str = ""
    """What the log line of a kick says of its sender."""


def encode_request(request: ConsoleRequest) -> bytes:
    return json.dumps(asdict(request)).encode() + b"\n"


def decode_request(line: bytes) -> ConsoleRequest:
    """Return the request of a line. Raises ValueError for any other line."""
    value = _load(line, REQUEST_LIMIT)
    if value.get("command") not in COMMANDS:
        raise ValueError(f"the command must be one of {', '.join(COMMANDS)}")
    peers, numbers, by = value.get("peers", []), value.get("numbers", []), value.get("by", "")
    if not isinstance(peers, list) or not isinstance(numbers, list) or len(peers) + len(numbers) > MAX_NAMED:
        raise ValueError(f"peers and numbers must be lists of {MAX_NAMED} items at the most")
    if not all(isinstance(each, str) and len(each) <= _PEER_LIMIT for each in peers) or not isinstance(by, str):
        raise ValueError("peers and the sender must be texts")
    return ConsoleRequest(value["command"], tuple(peers), tuple(map(_number, numbers)), escape_ascii(by, 64))


def encode_rows(rows: Iterable[WorkerRow]) -> bytes:
    return json.dumps({"rows": list(rows)}, separators=(",", ":")).encode() + b"\n"


def encode_end(**values: Any) -> bytes:
    """Return the last line of an answer; `error` says why there is nothing else."""
    return json.dumps({"end": values}).encode() + b"\n"


def encode_stack(stack: Stack) -> bytes:
    return json.dumps({"stack": stack}, separators=(",", ":")).encode() + b"\n"


def decode_line(line: bytes) -> list[WorkerRow] | Stack | dict[str, Any]:
    """Return the rows of a line, its stack, or of the last line the values. Raises ValueError for any other line.

    The values are not checked: see `count_in`.
    """
    value = _load(line, LINE_LIMIT)
    match value:
        case {"end": dict(end)}:
            return end
        case {"rows": list(rows)}:
            return [_row(each) for each in rows]
        case {"stack": list(stack)}:
            return _stack(stack)
    raise ValueError("neither rows nor a stack nor an end")


def count_in(end: dict[str, Any], name: str) -> int:
    """Return a count of the last line. Raises ValueError if it is none."""
    return _number(end.get(name))


def _row(value: object) -> WorkerRow:
    # The worker of an older server knows of no proxy.
    if not isinstance(value, list) or len(value) not in (7, 8):
        raise ValueError("not a row of a connection")
    number, inode, peer, phase, age, unsent, tls, proxy = value if len(value) == 8 else [*value, ""]
    if phase not in PHASES or not all(isinstance(each, str) for each in (peer, tls, proxy)):
        raise ValueError("not a row of a connection")
    if isinstance(age, bool) or not isinstance(age, int | float) or not 0 <= age < _MAX_NUMBER:
        raise ValueError("not an age")
    return WorkerRow(
        _number(number),
        _number(inode),
        escape_ascii(peer, _PEER_LIMIT),
        phase,
        float(age),
        _number(unsent),
        escape_ascii(tls, _TLS_LIMIT),
        escape_ascii(proxy, _PEER_LIMIT),
    )


def _stack(value: list[Any]) -> Stack:
    match value:
        case [str(name), count, list(frames), str(waits_for), list(peers), bool(thread)]:
            if len(frames) <= MAX_FRAMES + 1 and len(peers) <= MAX_PEERS:
                return Stack(
                    escape_ascii(name, _PEER_LIMIT),
                    _number(count),
                    tuple(map(_frame, frames)),
                    escape_ascii(waits_for, _TEXT_LIMIT),
                    tuple(escape_ascii(each, _PEER_LIMIT) for each in peers),
                    thread,
                )
    raise ValueError("not a stack")


def _frame(value: object) -> Frame:
    match value:
        case [str(file), line, str(function)]:
            return Frame(escape_ascii(file, _TEXT_LIMIT), _number(line), escape_ascii(function, _PEER_LIMIT))
    raise ValueError("not a frame")


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MAX_NUMBER:
        raise ValueError("not a number from 0 to 2^53")
    return value


def _load(line: bytes, limit: int) -> dict[str, Any]:
    if len(line) > limit:
        raise ValueError(f"a line has {limit} bytes at the most")
    try:
        value = json.loads(line)
    except RecursionError:
        # json recurses: a few thousand nested brackets raise it.
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value
