"""What one supervisor passes to the next: descriptors that stay open over exec, and a list that says what they are.

The list lies in a file without a name, whose number an environment variable tells; sockets need no message each, so
their number has no limit. When there is a hand-over, and what becomes of it, is decided elsewhere.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..text import escape_controls
from . import paths
from .descriptors import anonymous_file
from .listeners import Listener
from .unix_sockets import File

VARIABLE = "PREFORK_HANDOVER"
#: Of the list. A supervisor that does not know it refuses, and the one before it stays.
FORMAT = 1
_MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class InheritedState:
    """What one supervisor leaves to the next."""

    listeners: tuple[Listener, ...]
    pidfile: tuple[str, int] | None
    """Its path, and the descriptor that holds the lock."""
    workers: tuple[int, int]
    """How many the settings asked for, and how many there are: somebody may have scaled."""
    logs: Mapping[int, str]
    """The names of log files, by descriptor."""
    config: str | None = None
    """The file that settings were read from, "" for none; None: a version that did not tell."""
    home: str = ""
    """The folder that relative paths start in, as the user named it; "" where it is not known."""


@dataclass(frozen=True, slots=True)
class Handover:
    """An estate, whose descriptors are the receiver's now, and who left it."""

    pid: int
    channel: int
    """The conversation of the two: see `core/messages.py`."""
    estate: InheritedState


class HandoverWriter:
    """A hand-over that is being made: duplicates of the descriptors, whose numbers the list names. `close` it when the
    successor has been started."""

    def __init__(self, channel: int, estate: InheritedState) -> None:
        self.descriptors: list[int] = []
        held = estate.pidfile
        try:
            content = {
                "format": FORMAT,
                "pid": os.getpid(),
                "channel": self._add(channel),
                "listeners": [self._describe(each) for each in estate.listeners],
                "pidfile": None if held is None else [held[0], self._add(held[1])],
                "workers": list(estate.workers),
                "logs": dict(estate.logs),
                "config": estate.config,
                "home": estate.home,
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
        with anonymous_file("prefork-handover") as file:
            file.write(content)
            file.seek(0)
            return self._add(file.fileno())


#: What `secure` has found; `receive` gives it away once.
_arrived: list[dict[str, Any]] = []


def secure(environment: MutableMapping[str, str] | None = None) -> None:
    """Take what the supervisor before this one has passed on out of the environment, and make it close-on-exec.

    Called when prefork is imported: a program that the caller's own code starts before it serves would hold sockets
    open that nobody accepts from. What cannot be understood is for `receive` to tell.
    """
    variables = os.environ if environment is None else environment
    text = variables.pop(VARIABLE, "")
    if text:
        try:
            _arrived.append(_read(text))
        except Exception as exc:
            # It may be anything: an import must not fail for what stands in the environment.
            reason = f"no hand-over of another prefork: {escape_controls(exc)}"
            _arrived.append({"error": f"{VARIABLE} {escape_controls(text)}: {reason}"})


def receive() -> Handover | None:
    """What the supervisor before this one has passed on; None if this process was started otherwise.

    Raises ConfigError for what cannot be understood.
    """
    secure()
    if not _arrived:
        return None
    content = _arrived.pop()
    if "error" in content:
        raise ConfigError(content["error"])
    try:
        return _unpack(content)
    except Exception as exc:
        raise ConfigError(f"{VARIABLE}: no hand-over of another prefork: {escape_controls(exc)}") from None


def _read(text: str) -> dict[str, Any]:
    fd = int(text)
    # Not a terminal or a pipe, which would be waited for; nor a descriptor that is not ours to close.
    if fd <= 2:
        raise ValueError("it is a standard descriptor")
    paths.require_regular(os.fstat(fd))
    with open(fd, "rb") as file:
        content: dict[str, Any] = json.loads(file.read(_MAX_BYTES))
    if not isinstance(content, dict):
        raise ValueError("it is no list of what is passed on")
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']}, and this version knows {FORMAT}")
    descriptors = [
        content["channel"],
        *(fd for each in content["listeners"] for lanes in each["endpoints"] for fd in lanes),
    ]
    if content["pidfile"] is not None:
        descriptors.append(content["pidfile"][1])
    for fd in descriptors:
        os.set_inheritable(fd, False)
    return content


def _unpack(content: dict[str, Any]) -> Handover:
    held = content["pidfile"]
    wanted, actual = content["workers"]
    estate = InheritedState(
        listeners=tuple(_listener(each) for each in content["listeners"]),
        pidfile=None if held is None else (str(held[0]), int(held[1])),
        workers=(int(wanted), int(actual)),
        logs={int(fd): str(path) for fd, path in content["logs"].items()},
        config=None if content.get("config") is None else str(content["config"]),
        home=str(content.get("home", "")),
    )
    return Handover(int(content["pid"]), int(content["channel"]), estate)


def _listener(described: dict[str, Any]) -> Listener:
    endpoints = tuple(tuple(_adopt(fd) for fd in lanes) for lanes in described["endpoints"])
    file = described["file"]
    return Listener(str(described["asked"]), endpoints, None if file is None else File(*file))


def _adopt(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError(f"descriptor {fd} does not listen")
    sock.setblocking(False)
    return sock
