"""What a newly forked worker inherits from its supervisor, as one value that both sides know.

What the worker is to do with it is in `worker/`; how it is made is in `parent/workers.py`.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from .descriptors import Descriptor
from .inboxes import Inboxes
from .parent_death import Lifeline, Tether
from .readiness_channels import ReadinessChannel
from .scoreboard import Scoreboard
from .worker_channel import WorkerEnd
from .worker_signals import WorkerSignals


@dataclass(frozen=True, slots=True)
class ForkContext:
    """A worker's slot and generation, and the descriptors and memory that it shares with its supervisor.

    All signals are still blocked when the worker gets it.
    """

    slot: int
    generation: int
    parent: int
    """The process id of the supervisor."""
    status: Descriptor
    """The write end of the status pipe."""
    lifeline: Lifeline
    tether: Tether
    """Ends the worker's process group when the supervisor is gone."""
    scoreboard: Scoreboard
    inboxes: Inboxes
    row: int
    """The number of the worker's row on the scoreboard."""
    signals: WorkerSignals
    """Those that the supervisor sends."""
    channel: WorkerEnd
    """For what the worker asks its supervisor for."""
    console: socket.socket | None
    """Where the clients of its console arrive; see `console_channel.py`. None: it runs a program."""
    ready: ReadinessChannel | None = None
    """Where a program says that it is ready, if it is to."""
