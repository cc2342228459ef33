"""Hand sockets, pidfile and settings from one supervisor to the next: inherited descriptors and a manifest over exec.

The manifest is a file without a path; an environment variable holds its descriptor. Because exec inherits the sockets,
their number has no limit, as it would with a message for each. `parent/upgrade.py` decides when there is a hand-over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..text import escape_controls
from . import paths
from .descriptors import anonymous_file
from .listeners import BoundAddress
from .unix_sockets import File

VARIABLE = "PREFORK_HANDOVER"
#: Version of the manifest. A successor that does not know it refuses to start, and its predecessor goes on.
FORMAT = 1
_MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class InheritedState:
    """What a supervisor passes to its successor."""

    listeners: tuple[BoundAddress, ...]
    pidfile: tuple[str, int] | None
    """The pidfile's path, and the descriptor that holds its lock."""
    workers: tuple[int, int]
    """The number of workers in the settings, and the current one, which `scale` may have changed."""
    logs: Mapping[int, str]
    """The paths of log files, by descriptor."""
    config: str | None = None
    """The file that settings were read from; "" if there was none, None if an older version did not pass it on."""
    home: str = ""
    """The directory that relative paths start from, as the user named it; "" if it is not known."""
    suspended: bool = False
    """No worker is to accept."""


@dataclass(frozen=True, slots=True)
class Handover:
    """What the predecessor passed on. The receiver owns the descriptors."""

    pid: int
    """The predecessor's."""
    channel: int
    """The descriptor of the socket to the predecessor; see `core/messages.py`."""
    state: InheritedState


class HandoverWriter:
    """Duplicates the descriptors and writes the manifest that names them. `close` it when the successor has started."""

    def __init__(self, channel: int, state: InheritedState) -> None:
        self.descriptors: list[int] = []
        pidfile = state.pidfile
        try:
            content = {
                "format": FORMAT,
                "pid": os.getpid(),
                "channel": self._add(channel),
                "listeners": [self._describe(each) for each in state.listeners],
                "pidfile": None if pidfile is None else [pidfile[0], self._add(pidfile[1])],
                "workers": list(state.workers),
                "logs": dict(state.logs),
                "config": state.config,
                "home": state.home,
                "suspended": state.suspended,
            }
            self.variable = str(self._write(json.dumps(content).encode()))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())

    def _add(self, fd: int) -> int:
        # A duplicate, because `System.fork` closes the supervisor's own descriptors in every child.
        duplicate = os.dup(fd)
        self.descriptors.append(duplicate)
        return duplicate

    def _describe(self, listener: BoundAddress) -> dict[str, Any]:
        file = listener.file
        return {
            # The keys are those of FORMAT 1, which other versions read.
            "asked": listener.requested,
            "endpoints": [[self._add(sock.fileno()) for sock in group] for group in listener.endpoints],
            "file": None if file is None else [file.path, file.device, file.inode],
        }

    def _write(self, content: bytes) -> int:
        with anonymous_file("prefork-handover") as file:
            file.write(content)
            file.seek(0)
            return self._add(file.fileno())


#: The manifest that `mark_cloexec` has read, for the one call of `load`.
_manifests: list[dict[str, Any]] = []


def mark_cloexec() -> None:
    """Remove the manifest's variable from the environment, and make the inherited descriptors close-on-exec.

    Called when prefork is imported. Otherwise a program that the application starts before it serves would hold
    listening sockets open without accepting from them. `load` reports a manifest that cannot be read.
    """
    text = os.environ.pop(VARIABLE, "")
    if text:
        try:
            _manifests.append(_read(text))
        except Exception as exc:
            # Any exception, because an import must not fail on what the environment contains.
            reason = f"not a hand-over from another prefork: {escape_controls(exc)}"
            _manifests.append({"error": f"{VARIABLE} {escape_controls(text)}: {reason}"})


def is_pending() -> bool:
    """Return whether a predecessor has started this process, and `load` was not called yet."""
    return bool(_manifests)


def load() -> Handover | None:
    """Return what the predecessor has passed on; None if no predecessor started this process.

    Raises ConfigError if the manifest cannot be read.
    """
    mark_cloexec()
    if not _manifests:
        return None
    content = _manifests.pop()
    if "error" in content:
        raise ConfigError(content["error"])
    try:
        return _unpack(content)
    except Exception as exc:
        raise ConfigError(f"{VARIABLE}: not a hand-over from another prefork: {escape_controls(exc)}") from None


def _read(text: str) -> dict[str, Any]:
    fd = int(text)
    # Reading a terminal or a pipe would block, and a standard descriptor must not be closed.
    if fd <= 2:
        raise ValueError("it is a standard descriptor")
    paths.require_regular(os.fstat(fd))
    with open(fd, "rb") as file:
        content: dict[str, Any] = json.loads(file.read(_MAX_BYTES))
    if not isinstance(content, dict):
        raise ValueError("it is not a manifest")
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']}, and this version knows {FORMAT}")
    sockets = (fd for each in content["listeners"] for group in each["endpoints"] for fd in group)
    descriptors = [content["channel"], *sockets]
    if content["pidfile"] is not None:
        descriptors.append(content["pidfile"][1])
    for fd in descriptors:
        os.set_inheritable(fd, False)
    return content


def _unpack(content: dict[str, Any]) -> Handover:
    pidfile = content["pidfile"]
    wanted, actual = content["workers"]
    state = InheritedState(
        listeners=tuple(_listener(each) for each in content["listeners"]),
        pidfile=None if pidfile is None else (str(pidfile[0]), int(pidfile[1])),
        workers=(int(wanted), int(actual)),
        logs={int(fd): str(path) for fd, path in content["logs"].items()},
        config=None if content.get("config") is None else str(content["config"]),
        home=str(content.get("home", "")),
        # An older version does not pass it on.
        suspended=content.get("suspended") is True,
    )
    return Handover(int(content["pid"]), int(content["channel"]), state)


def _listener(described: dict[str, Any]) -> BoundAddress:
    endpoints = tuple(tuple(_listening_socket(fd) for fd in group) for group in described["endpoints"])
    file = described["file"]
    return BoundAddress(str(described["asked"]), endpoints, None if file is None else File(*file))


def _listening_socket(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        # The workers of a program did not listen on it. Those that come may.
        with contextlib.suppress(OSError):
            sock.listen()
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError(f"descriptor {fd} does not listen")
    sock.setblocking(False)
    return sock
