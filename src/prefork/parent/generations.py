"""What each generation of workers is made of, and what the supervisor needs from the owner of the resources.

The supervisor knows the numbers of a `GenerationSpec` and hands its `config` to the workers unread. `assembly` makes
specs; the roster decides when a generation begins.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ..core.states import Timing
from ..core.worker_requests import BindRequest, Refused
from ..program import ReadyWhen
from ..system.descriptors import Descriptor
from ..system.file_ownership import FileOwnership
from ..system.handover import HandoverWriter
from ..system.scoreboard import FleetSetting

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """What the supervisor knows of a program that workers run."""

    ready: ReadyWhen
    named: tuple[frozenset[int], ...]
    """The sockets of each address that --bind names, by inode: a worker has to listen on one of each."""
    exclusive: frozenset[int]
    """The sockets of --exclusive that --bind names, too."""


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
    program: ProgramSpec | None = None
    """None: workers serve a service of prefork's own kinds."""
    max_worker_rss: int | None = None
    """The resident bytes at which a worker is recycled."""
    certificates: tuple[tuple[str, int], ...] = ()
    """Each certificate file, and when the first certificate in it expires, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class RenewedTLS(Generic[C]):
    """What became of TLS files that have changed."""

    file: Descriptor
    """What workers that run are handed out; its receiver owns it."""
    change: Callable[[GenerationSpec[C]], GenerationSpec[C]]
    """Returns a spec with the renewed files; the same one if it has others."""


class Resources(Protocol[C]):
    """The owner of everything that outlives workers: sockets, certificates, files. See `assembly/resources.py`."""

    def rebuild(self) -> GenerationSpec[C]: ...
    def prepare_fork(self, spec: GenerationSpec[C]) -> None: ...
    def commit(self, spec: GenerationSpec[C]) -> None: ...
    def release_unused(self, specs: Collection[GenerationSpec[C]]) -> None: ...
    def end_listening(self) -> None: ...
    def repair_listeners(self, spec: GenerationSpec[C]) -> GenerationSpec[C] | None: ...
    def set_ownership(self, ownership: FileOwnership) -> None: ...
    def export(self, channel: int, workers: int, suspended: bool) -> tuple[HandoverWriter, Mapping[str, str]]: ...
    def find_for_program(self, spec: GenerationSpec[C], request: BindRequest) -> socket.socket | Refused | None: ...
    def bind_for_program(self, spec: GenerationSpec[C], request: BindRequest) -> socket.socket | Refused: ...
    def is_exclusive(self, spec: GenerationSpec[C], request: BindRequest) -> bool: ...
    def holds_path(self, path: str) -> bool: ...
    def note_listening(self, number: int) -> bool: ...
    def current_socket(self, number: int) -> int | None: ...
    def program_listeners(self) -> list[str]: ...
    def next_tls_look(self) -> float | None: ...
    def renew_tls(self, spec: GenerationSpec[C], now: float) -> RenewedTLS[C] | str | None: ...
    def certificate_reloads(self) -> dict[str, int]: ...
    def queues(self) -> list[dict[str, Any]]: ...
    def silence_unused(self, listening: Collection[int]) -> None: ...
    def describe_sockets(self, sockets: Collection[int]) -> str: ...
    def notify_ready(self) -> None: ...
    def notify_watchdog(self) -> None: ...
    def reopen_logs(self) -> None: ...
