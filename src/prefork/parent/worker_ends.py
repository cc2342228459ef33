"""What connects one worker with its supervisor, made before the fork: pipe, tether, channels.

Descriptors only; what comes through them is read in `workers.py`.
"""

from __future__ import annotations

import contextlib
import os

from ..core.facts import Spawn
from ..system.console_channel import ConsoleChannel
from ..system.descriptors import Descriptor
from ..system.fork_context import ForkContext
from ..system.inboxes import Inboxes
from ..system.parent_death import Lifeline, Tether
from ..system.processes import System
from ..system.scoreboard import Scoreboard
from ..system.worker_channel import WorkerChannel
from ..system.worker_signals import WorkerSignals
from .generations import ProgramSpec
from .programs import Programs


class WorkerEnds:
    """Both ends of all that connects a worker that is about to be forked. Raises OSError, and leaves nothing then.

    No other child gets the supervisor's ends.
    """

    def __init__(self, system: System, programs: Programs, command: Spawn, spec: ProgramSpec | None) -> None:
        with contextlib.ExitStack() as undo:
            self.status, self._writer = (Descriptor(fd) for fd in os.pipe())
            undo.callback(self.status.close)
            undo.callback(self._writer.close)
            os.set_blocking(self.status.fileno(), False)
            self.tether = Tether()
            undo.callback(self.tether.close)
            self.channel = WorkerChannel()
            undo.callback(self.channel.close)
            self.console = None if spec is not None else ConsoleChannel()
            """None: it runs a program, which has a loop of its own, or none."""
            if self.console is not None:
                undo.callback(self.console.close)
                system.close_in_child(self.console.parent_end)
            self.program = None
            """None: it serves a service."""
            if spec is not None:
                self.program = programs.prepare(spec, command.worker_id, command.slot, system.monotonic())
                undo.callback(self.program.close)
            system.close_in_child(self.status, self.tether.parent_end, self.channel.parent_end)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Close both ends of all, because there is no worker (idempotent)."""
        self._undo.close()

    def close_child_ends(self) -> None:
        """Close what only the worker needs, in the supervisor after the fork."""
        self._writer.close()
        self.tether.close_child_end()
        self.channel.child_end.close()
        if self.console is not None:
            self.console.child_end.close()

    def fork_context(
        self,
        command: Spawn,
        parent: int,
        lifeline: Lifeline,
        scoreboard: Scoreboard,
        inboxes: Inboxes,
        row: int,
        signals: WorkerSignals,
    ) -> ForkContext:
        """Return what the worker gets: its own ends, and what all workers share."""
        return ForkContext(
            slot=command.slot,
            generation=command.generation,
            parent=parent,
            status=self._writer,
            lifeline=lifeline,
            tether=self.tether,
            scoreboard=scoreboard,
            inboxes=inboxes,
            row=row,
            signals=signals,
            channel=self.channel.child_end,
            console=None if self.console is None else self.console.child_end,
            ready=None if self.program is None else self.program.channel,
        )
