"""The connection between two supervisors during an upgrade: messages, and the end of the other process.

Effects only. `core/upgrade.py` decides what follows; `assembly` puts together what a successor inherits.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping

from ..core.messages import (
    Decoder,
    LeasesGivenUpMessage,
    ReadyMessage,
    ReopenLogsMessage,
    SettledMessage,
    StoppingMessage,
    UnableMessage,
    encode,
)
from ..core.upgrade import (
    SuccessorDied,
    SuccessorReady,
    SuccessorStarted,
    SuccessorStopping,
    SuccessorUnable,
    UpgradeFact,
)
from ..errors import PreforkError, reason_of
from ..system.child import Child
from ..system.handover import VARIABLE, HandoverWriter
from ..system.processes import REAP_INTERVAL, System
from ..text import escape_ascii

#: Puts together what a successor inherits, with a channel of this number, and variables of its environment.
Export = Callable[[int], tuple[HandoverWriter, Mapping[str, str]]]

#: Seconds until a message that the kernel did not take is sent again.
RETRY = 0.1


class Successor:
    """The supervisor that is to take over, or has: its process and its messages. One at a time."""

    def __init__(self, system: System, export: Export) -> None:
        self._system = system
        self._export = export
        self._child: Child | None = None
        self._channel: socket.socket | None = None
        self._decoder = Decoder()
        self.wants_logs_reopened = False
        """It was told to open its log files again. Cleared by its reader."""

    def launch(self) -> list[UpgradeFact]:
        """Start the command that started this process, with all of its listening sockets."""
        command = _command()
        try:
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self._channel, self._decoder = here, Decoder()
            with contextlib.closing(there):
                here.setblocking(False)
                self._system.close_in_child(here)
                writer, variables = self._export(there.fileno())
                with contextlib.closing(writer):
                    environment = {**os.environ, **variables, VARIABLE: writer.variable}
                    on_failure = functools.partial(_report_failure, there, command[0])
                    child = self._system.execute(command, environment, writer.descriptors, on_failure)
        except (OSError, PreforkError) as exc:
            self.close()
            reason = reason_of(exc) if isinstance(exc, OSError) else str(exc)
            failure = f"the new supervisor could not be started: {reason}"
            return [SuccessorUnable(failure), SuccessorDied("never started")]
        self._child = child
        return [SuccessorStarted(child.pid)]

    def send(self, message: LeasesGivenUpMessage | SettledMessage) -> bool:
        """Send a message; return whether the kernel has taken it. One that is taken in part is not understood."""
        try:
            return self._channel is not None and self._channel.send(encode(message)) > 0
        except OSError:
            return False

    def signal(self, at_once: bool) -> None:
        if self._child is not None:
            self._child.signal(signal.SIGKILL if at_once else signal.SIGTERM)

    def interests(self) -> dict[int, int]:
        wanted: dict[int, int] = {}
        if self._channel is not None:
            wanted[self._channel.fileno()] = select.POLLIN
        if self._child is not None and self._child.pollable:
            wanted[self._child.fileno()] = select.POLLIN
        return wanted

    def next_due(self, now: float) -> float | None:
        """Return when to look for its exit, if no descriptor tells of it because there are no pidfds."""
        return now + REAP_INTERVAL if self._child is not None and not self._child.pollable else None

    def collect(self) -> list[UpgradeFact]:
        """Receive its messages, and reap it if it has ended. Never blocks."""
        if self._child is None:
            return []
        status = self._child.reap()
        # Messages first: a successor that cannot start says why and ends.
        facts = self._receive()
        if status is not None:
            self.close()
            facts.append(SuccessorDied(status.describe()))
        return facts

    def close(self) -> None:
        """Close the connection; the process goes on."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._child is not None:
            self._child.close()
            self._child = None

    def _receive(self) -> list[UpgradeFact]:
        if self._channel is None:
            return []
        try:
            data = self._channel.recv(65536)
        except ConnectionError:
            data = b""
        except OSError:
            # Nothing to read, or a failure that need not repeat itself.
            return []
        if not data:
            # It closed its end or is dead, which reaping will show.
            self._channel.close()
            self._channel = None
        facts: list[UpgradeFact] = []
        for message in self._decoder.feed(data):
            if isinstance(message, ReadyMessage):
                facts.append(SuccessorReady())
            elif isinstance(message, StoppingMessage):
                facts.append(SuccessorStopping(message.at_once))
            elif isinstance(message, ReopenLogsMessage):
                self.wants_logs_reopened = True
            elif isinstance(message, UnableMessage):
                facts.append(SuccessorUnable(escape_ascii(message.reason, 1000)))
        return facts


def _command() -> list[str]:
    """Return the command that started this process.

    `python -m prefork` would import from the current directory first, so any user who can write to it could have this
    user run code; -P prevents that (PYTHONSAFEPATH).
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    unsafe = spec is not None and spec.name == "prefork.__main__" and not sys.flags.safe_path
    return [sys.executable, *(["-P"] if unsafe else []), *sys.orig_argv[1:]]


def _report_failure(channel: socket.socket, program: str, exc: OSError) -> None:
    """Report, from the new process, that it cannot execute the program."""
    channel.send(encode(UnableMessage(f"{program} could not be started: {reason_of(exc)}")))


class Predecessor:
    """The supervisor that started this one: it receives messages, and its end is noticed by its end of the channel."""

    def __init__(self, pid: int, channel: int) -> None:
        self.pid = pid
        self._channel = socket.socket(fileno=channel)
        self._channel.setblocking(False)
        self._unsent = b""
        self._decoder = Decoder()
        self.gone = False
        self.leases_given_up = False
        """Whether no worker there holds a lease any more, or will get one."""
        self.settled = False
        """Whether it has given up its sockets, and will not serve again."""

    def fileno(self) -> int:
        return self._channel.fileno()

    def interests(self) -> dict[int, int]:
        return {} if self.gone else {self._channel.fileno(): select.POLLIN}

    def next_due(self, now: float) -> float | None:
        """Return when to send again what the kernel did not take."""
        return now + RETRY if self._unsent and not self.gone else None

    def check(self) -> None:
        """Send what is unsent, receive, and notice its end."""
        if self.gone:
            return
        self._flush()
        try:
            data = self._channel.recv(4096)
        except ConnectionError:
            data = b""
        except OSError:
            # Nothing to read, or a failure that need not repeat itself: it runs until the channel says otherwise.
            return
        for message in self._decoder.feed(data):
            self.leases_given_up = self.leases_given_up or isinstance(message, LeasesGivenUpMessage)
            self.settled = self.settled or isinstance(message, SettledMessage)
        if not data:
            self.close()

    def send(self, message: ReadyMessage | UnableMessage | StoppingMessage | ReopenLogsMessage) -> None:
        """Send a message if it still runs; `check` sends what the kernel does not take now.

        A READY that is lost would leave two supervisors that both believe they serve.
        """
        if not self.gone:
            self._unsent += encode(message)
            self._flush()

    def _flush(self) -> None:
        if self._unsent:
            with contextlib.suppress(OSError):
                self._unsent = self._unsent[self._channel.send(self._unsent) :]

    @property
    def shares_sockets(self) -> bool:
        """Whether it has the sockets too, or serves with them again if this supervisor dies."""
        return not self.gone and not self.settled

    def close(self) -> None:
        self.gone = True
        self._channel.close()
