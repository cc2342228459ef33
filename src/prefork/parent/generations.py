"""What each generation of workers is made of, and what the supervisor needs from the owner of the resources.

The supervisor knows the numbers of a `GenerationSpec` and hands its `config` to the workers unread. `assembly` makes
specs; the roster decides when a generation begins.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ..core.states import Timing
from ..system.file_ownership import FileOwnership
from ..system.handover import HandoverWriter
from ..system.scoreboard import FleetSetting

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class GenerationSpec(Generic[C]):
    """What one generation of workers is to be."""

    workers: int
    timing: Timing
    limits: Mapping[FleetSetting, int]
    """What holds for all workers together, published on the scoreboard."""
    listeners: tuple[str, ...]
    """The listening sockets, as `prefork status` shows them."""
    config: C


class Resources(Protocol[C]):
    """The owner of everything that outlives workers: sockets, certificates, files."""

    def rebuild(self) -> GenerationSpec[C]:
        """Return a spec made of what the files say now. Raise PreforkError; nothing has changed then."""

    def prepare_fork(self, spec: GenerationSpec[C]) -> None:
        """Make this process one to fork a worker of `spec` from. Raise PreforkError."""

    def commit(self, spec: GenerationSpec[C]) -> None:
        """Apply the settings of `spec` to what all generations share, because every worker is of it now."""

    def release_unused(self, specs: Collection[GenerationSpec[C]]) -> None:
        """Close the sockets that none of these specs has, because no other spec will be used any more."""

    def end_listening(self) -> None:
        """Close all listening sockets, because no worker accepts any more and none will."""

    def notify_ready(self) -> None:
        """Tell the service manager or the parent that every worker accepts, for the first time."""

    def set_ownership(self, ownership: FileOwnership) -> None:
        """Say which supervisor owns the files that outlive a hand-over: unix sockets and the pidfile."""

    def export(self, channel: int, workers: int) -> tuple[HandoverWriter, Mapping[str, str]]:
        """Return what a successor inherits, which is to have `workers` workers, and variables of its environment.

        Raise OSError, or PreforkError if the program must not be run again.
        """

    def repair_listeners(self, spec: GenerationSpec[C]) -> GenerationSpec[C] | None:
        """Repair what a worker may have done to the shared sockets, because one died unasked.

        Return `spec` with other listeners if some had to be bound again: workers of it have to replace those that run.
        """

    def notify_watchdog(self) -> None:
        """Send the service manager's watchdog its keep-alive ping."""

    def reopen_logs(self) -> None:
        """Open the log files again, because they were moved away."""
