"""What a balancer is to the cases: started on a node, asked which hosts it takes, and its log of each connection.

HAProxy is in `haproxy.py`, nginx in `nginx.py`.
"""

from __future__ import annotations

import abc
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from soak import proc
from soak.errors import HarnessError

from .host import PORT, Host
from .losses import Passage
from .network import Node


class Balancer(abc.ABC):
    """A running balancer, in front of these hosts. Made by `running`."""

    #: Its program, and what a table calls it.
    program: str

    def __init__(self, node: Node, hosts: Sequence[Host], folder: Path) -> None:
        self.node = node
        self.hosts = hosts
        self.folder = folder
        self.log = folder / "log"
        self._taken = 0
        """How long its log was when it had taken all hosts; before, it may find some that begin."""

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that clients connect to."""
        return self.node.address, PORT

    @abc.abstractmethod
    def command(self) -> list[str]:
        """Write its configuration into `folder`; return the command that runs it in the foreground."""

    @abc.abstractmethod
    def passages(self) -> list[Passage]:
        """Return the connections of its log."""

    def takes(self, host: Host) -> bool:
        """Return whether it sends new connections to a host, as far as it says."""
        return True

    def processor_seconds(self) -> float:
        """Return the processor time that its processes have used."""
        return sum(map(proc.processor_seconds, self._program.members()))

    def noted(self) -> str:
        """Return what it has noted of the hosts' health, in words, or ""."""
        return ""

    def _takes_all(self) -> bool:
        if not self._program.members():
            raise HarnessError(f"{self.program} has ended")
        return all(map(self.takes, self.hosts))

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """Run it until the end of the block. Raises HarnessError unless it soon takes all hosts."""
        with self.log.open("ab") as log:
            self._program = self.node.start(self.command(), log)
        try:
            try:
                proc.wait_until(self._takes_all, 30, f"{self.program} that takes all", 0.05)
            except HarnessError as exc:
                raise HarnessError(f"{exc}; it logged:\n{self.log.read_text(errors='replace')[-2000:]}") from exc
            self._taken = len(self.log.read_text(errors="replace"))
            yield self
        finally:
            self._program.kill()


@contextlib.contextmanager
def folder_in(parent: Path) -> Iterator[Path]:
    """Make a folder for one run of a balancer; it is gone in the end."""
    with tempfile.TemporaryDirectory(prefix="balancer-", dir=parent) as name:
        yield Path(name)
