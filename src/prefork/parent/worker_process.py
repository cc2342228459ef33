"""One worker process, with what its supervisor holds for it until it is reaped.

Only data; `workers.py` fills it in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.messages import Decoder
from ..system.child import Child
from ..system.console_channel import ConsoleChannel
from ..system.descriptors import Descriptor
from ..system.parent_death import Tether
from ..system.scoreboard import Row
from .programs import ProgramWorker
from .requests import Asker


@dataclass(slots=True)
class WorkerProcess:
    """The descriptors in it are the supervisor's, which closes them when the worker has ended."""

    worker_id: int
    child: Child
    status: Descriptor
    tether: Tether
    decoder: Decoder
    slot: int
    row: Row
    asker: Asker
    console: ConsoleChannel | None
    """None: it runs a program, which has a loop of its own, or none."""
    program: ProgramWorker | None
    """None: it serves a service."""
    drained: bool = False
    """It was asked to end."""
    stacks: list[str] = field(default_factory=list)
    ended: bool = False
    """The end of the status pipe was reached."""
    cpu: float = 0.0
    """Seconds of CPU time, once it was reaped."""
    muted_until: float = 0.0
    """Do not read the status pipe before, because the worker floods it."""
