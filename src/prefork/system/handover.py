"""What one supervisor passes to the next: descriptors that stay open over exec, and a list that says what they are.

The list lies in a file without a name, whose number an environment variable tells; sockets need no message each, so
their number has no limit. When there is a hand-over, and what becomes of it, is decided elsewhere.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .listeners import File, Listener

VARIABLE = "PREFORK_HANDOVER"
#: Of the list. A supervisor that does not know it refuses, and the one before it stays.
FORMAT = 1
_MOST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Handover:
    """Descriptors that are the receiver's, and who gave them."""

    pid: int
    channel: int
    """The conversation of the two: see `core/messages.py`."""
    listeners: tuple[Listener, ...]
    pidfile: tuple[str, int] | None
    """Its path, and the descriptor that holds the lock."""


class Parcel:
    """A hand-over that is being made: duplicates of the descriptors, whose numbers the list names. `close` it when the
    successor has been started."""

    def __init__(self, channel: int, listeners: Sequence[Listener], pidfile: tuple[str, int] | None) -> None:
        self.descriptors: list[int] = []
        try:
            content = {
                "format": FORMAT,
                "pid": os.getpid(),
                "channel": self._add(channel),
                "listeners": [self._describe(each) for each in listeners],
                "pidfile": None if pidfile is None else [pidfile[0], self._add(pidfile[1])],
            }
            self.variable = str(self._write(json.dumps(content).encode()))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the duplicates."""
        while self.descriptors:
            os.close(self.descriptors.pop())

    def _add(self, fd: int) -> int:
        # Not the number itself: what is the supervisor's alone is closed in every child.
        duplicate = os.dup(fd)
        self.descriptors.append(duplicate)
        return duplicate

    def _describe(self, listener: Listener) -> dict[str, Any]:
        file = listener.file
        return {
            "asked": listener.asked,
            "endpoints": [[self._add(sock.fileno()) for sock in lanes] for lanes in listener.endpoints],
            "file": None if file is None else [file.path, file.device, file.inode],
        }

    def _write(self, content: bytes) -> int:
        with (
            tempfile.TemporaryFile(buffering=0)
            if not hasattr(os, "memfd_create")
            else open(os.memfd_create("prefork-handover"), "r+b", buffering=0) as file
        ):
            file.write(content)
            file.seek(0)
            return self._add(file.fileno())


def receive(environment: MutableMapping[str, str] | None = None) -> Handover | None:
    """What the supervisor before this one has passed on; None if this process was started otherwise.

    Everything is close-on-exec from here on. Raises ConfigError for what cannot be understood.
    """
    variables = os.environ if environment is None else environment
    text = variables.pop(VARIABLE, "")
    if not text:
        return None
    try:
        with open(int(text), "rb") as file:
            content = json.loads(file.read(_MOST_BYTES))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, and this version knows {FORMAT}")
        return _unpack(content)
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as exc:
        raise ConfigError(f"{VARIABLE} {text}: no hand-over of another prefork: {exc}") from None


def _unpack(content: dict[str, Any]) -> Handover:
    channel = int(content["channel"])
    os.set_inheritable(channel, False)
    pidfile = None
    if content["pidfile"] is not None:
        path, fd = content["pidfile"]
        os.set_inheritable(fd, False)
        pidfile = (str(path), int(fd))
    listeners = tuple(_listener(each) for each in content["listeners"])
    return Handover(int(content["pid"]), channel, listeners, pidfile)


def _listener(described: dict[str, Any]) -> Listener:
    endpoints = tuple(tuple(_adopt(fd) for fd in lanes) for lanes in described["endpoints"])
    file = described["file"]
    return Listener(str(described["asked"]), endpoints, None if file is None else File(*file))


def _adopt(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError(f"descriptor {fd} does not listen")
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock
