"""An upgrade as two supervisors see it: the one that runs and its successor, and the conversation between them.

Effects alone: what leads to what is decided in `core/upgrade.py`; what is passed on is put together by who knows it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping

from ..core.messages import Decoder, ReadyMessage, StoppingMessage, UnableMessage, encode
from ..core.upgrade import (
    Fact,
    SuccessorDied,
    SuccessorReady,
    SuccessorStarted,
    SuccessorStopping,
    SuccessorUnable,
)
from ..errors import PreforkError
from ..system.child import Child
from ..system.handover import VARIABLE, HandoverWriter
from ..system.processes import System
from ..text import escape_ascii

#: Puts together what a successor gets, for a channel with this number, and the variables of its environment.
Pack = Callable[[int], tuple[HandoverWriter, Mapping[str, str]]]

#: Seconds until the next try to send a message.
RETRY = 0.1


class Successor:
    """The supervisor that is to take over, or has: its process, and what it says. One at a time."""

    def __init__(self, system: System, pack: Pack) -> None:
        self._system = system
        self._pack = pack
        self._child: Child | None = None
        self._channel: socket.socket | None = None
        self._decoder = Decoder()

    def launch(self) -> list[Fact]:
        """Start the command that started this process, with everything that we listen on."""
        command = _command()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self._channel, self._decoder = ours, Decoder()
            with contextlib.closing(theirs):
                ours.setblocking(False)
                self._system.close_in_child(ours)
                parcel, variables = self._pack(theirs.fileno())
                with contextlib.closing(parcel):
                    environment = {**os.environ, **variables, VARIABLE: parcel.variable}
                    child = self._system.execute(command, environment, parcel.descriptors, _tell_why(theirs, command))
        except (OSError, PreforkError) as exc:
            self.close()
            why = (exc.strerror or str(exc)).lower() if isinstance(exc, OSError) else str(exc)
            reason = f"it cannot be started: {why}"
            return [SuccessorUnable(reason), SuccessorDied("never started")]
        self._child = child
        return [SuccessorStarted(child.pid)]

    def signal(self, at_once: bool) -> None:
        """Ask it to end, or end it."""
        if self._child is not None:
            self._child.signal(signal.SIGKILL if at_once else signal.SIGTERM)

    def interests(self, now: float) -> dict[int, int]:
        """What to poll for: descriptors and events."""
        wanted: dict[int, int] = {}
        if self._channel is not None:
            wanted[self._channel.fileno()] = select.POLLIN
        if self._child is not None and self._child.pollable:
            wanted[self._child.fileno()] = select.POLLIN
        return wanted

    def must_poll_exit(self) -> bool:
        """Whether its end cannot be polled for."""
        return self._child is not None and not self._child.pollable

    def take(self) -> list[Fact]:
        """What it said, and whether it has died. Costs two system calls while there is one, and nothing else."""
        child = self._child
        if child is None:
            return []
        death = child.reap()
        facts = self._listen()
        if death is not None:
            self.close()
            facts.append(SuccessorDied(death.describe()))
        return facts

    def close(self) -> None:
        """Hear no more of it; it goes on."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._child is not None:
            self._child.close()
            self._child = None

    def _listen(self) -> list[Fact]:
        if self._channel is None:
            return []
        try:
            data = self._channel.recv(65536)
        except ConnectionError:
            data = b""
        except OSError:
            # Nothing to read, or no answer this time.
            return []
        if not data:
            # It has closed its end, or is gone; its death, if it is that, is told by the process.
            self._channel.close()
            self._channel = None
        facts: list[Fact] = []
        for message in self._decoder.feed(data):
            if isinstance(message, ReadyMessage):
                facts.append(SuccessorReady())
            elif isinstance(message, StoppingMessage):
                facts.append(SuccessorStopping(message.at_once))
            elif isinstance(message, UnableMessage):
                facts.append(SuccessorUnable(escape_ascii(message.reason, 1000)))
        return facts


def _command() -> list[str]:
    """The command that started this process. `python -m prefork` would look into the current folder before anything
    else, and whoever may write to it would have us run a module of theirs (-P, PYTHONSAFEPATH)."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    unsafe = spec is not None and spec.name == "prefork.__main__" and not sys.flags.safe_path
    return [sys.executable, *(["-P"] if unsafe else []), *sys.orig_argv[1:]]


def _tell_why(channel: socket.socket, command: list[str]) -> Callable[[OSError], None]:
    """For the new process: what to do when the program cannot be executed."""

    def tell(exc: OSError) -> None:
        channel.send(encode(UnableMessage(f"{command[0]} cannot be started: {(exc.strerror or str(exc)).lower()}")))

    return tell


class Predecessor:
    """The supervisor that started this one to take over: it is told how it goes, and is watched for its end."""

    def __init__(self, pid: int, channel: int) -> None:
        self.pid = pid
        self._channel = socket.socket(fileno=channel)
        self._channel.setblocking(False)
        self._unsent = b""
        self.gone = False

    def fileno(self) -> int:
        """The descriptor of the conversation."""
        return self._channel.fileno()

    def interests(self, now: float) -> dict[int, int]:
        """What to poll for: descriptors and events."""
        return {} if self.gone else {self._channel.fileno(): select.POLLIN}

    def next_due(self, now: float) -> float | None:
        """When to try again to send what could not be sent."""
        return now + RETRY if self._unsent and not self.gone else None

    def take(self) -> None:
        """Look whether it has ended; it says nothing."""
        if self.gone:
            return
        self._send()
        try:
            ended = not self._channel.recv(4096)
        except ConnectionError:
            ended = True
        except OSError:
            # Nothing to read, or no answer this time: it is there as long as nothing says otherwise.
            return
        if ended:
            self.close()

    def tell(self, message: ReadyMessage | UnableMessage | StoppingMessage) -> None:
        """Say it, if it is still there; what the kernel does not take is sent at the next `take`.

        A READY that is lost would leave two supervisors, and each would believe that it serves.
        """
        if not self.gone:
            self._unsent += encode(message)
            self._send()

    def _send(self) -> None:
        if self._unsent:
            with contextlib.suppress(OSError):
                self._unsent = self._unsent[self._channel.send(self._unsent) :]

    def close(self) -> None:
        """Talk no more."""
        self.gone = True
        self._channel.close()
