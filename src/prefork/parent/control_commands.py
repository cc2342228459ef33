"""What requests on the control socket lead to, and when they are answered.

Between `control.py`, which knows bytes, and the supervisor, which does what is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..core.control_protocol import Request
from ..events import Event, Reloaded, ReloadFailed, ReloadIgnored, Upgraded, UpgradeFailed, UpgradeIgnored
from .control_server import ControlConnection, ControlSocket

#: What reloads, scalings and stops by the control socket are put down to.
CONTROL = "control socket"
#: Clients that wait for the end of a reload or an upgrade at once; each holds a descriptor.
MAX_WAITERS = 64


class Server(Protocol):
    """What can be asked for."""

    def status(self) -> dict[str, Any]:
        """How it is."""

    def start_reload(self, by: str) -> None:
        """Begin one; its end is an event."""

    def reloading(self) -> bool:
        """Whether one is under way."""

    def start_upgrade(self, by: str) -> None:
        """The same."""

    def upgrading(self) -> bool:
        """The same."""

    def most_workers(self) -> int:
        """How many there can be."""

    def scale(self, by: str, workers: int) -> str:
        """Have so many; why not, "" if it is so."""

    def stop(self, by: str, at_once: bool) -> None:
        """End."""


class ControlCommands:
    """Serves `control` for `server`. Owns the conversations that wait for the end of something."""

    def __init__(self, control: ControlSocket, server: Server) -> None:
        self.control = control
        self._server = server
        self._reload_askers: list[ControlConnection] = []
        self._upgrade_askers: list[ControlConnection] = []
        self._reload_outcome: Event | None = None
        self._upgrade_outcome: Event | None = None
        self._refusals: list[Event] = []
        """Of what is being asked for at this moment: an answer for who asks, and nobody else. One at most."""

    def notice(self, event: Event) -> None:
        """Something has happened that somebody may wait for."""
        if isinstance(event, Reloaded | ReloadFailed):
            self._reload_outcome = event
        elif isinstance(event, Upgraded | UpgradeFailed):
            self._upgrade_outcome = event
        elif isinstance(event, ReloadIgnored | UpgradeIgnored):
            self._refusals = [event]

    def serve(self, ready: set[int], now: float) -> None:
        """Hear, do and answer; `ready` are descriptors that a poll named."""
        for conversation, request in self.control.take(ready, now):
            self._answer(conversation, request)
        if self._reload_askers and not self._server.reloading():
            self._reply_all(self._reload_askers, describe_outcome(self._reload_outcome))
        if self._upgrade_askers and not self._server.upgrading():
            self._reply_all(self._upgrade_askers, describe_outcome(self._upgrade_outcome))

    def _answer(self, conversation: ControlConnection, request: Request) -> None:
        reply: dict[str, Any] = {"ok": True}
        match request.command:
            case "reload" | "upgrade" if len(self._reload_askers) + len(self._upgrade_askers) >= MAX_WAITERS:
                reply = {"ok": False, "error": f"{MAX_WAITERS} clients are waiting for a reload or an upgrade already"}
            case "reload":
                self._reload_outcome = None
                self._begin(conversation, self._server.start_reload, self._reload_askers)
                return
            case "upgrade":
                self._upgrade_outcome = None
                self._begin(conversation, self._server.start_upgrade, self._upgrade_askers)
                return
            case "scale" if not 1 <= request.workers <= self._server.most_workers():
                most = self._server.most_workers()
                error = f"workers must be from 1 to {most}, not {request.workers} (more: a restart with --workers)"
                reply = {"ok": False, "error": error}
            case "scale":
                error = self._server.scale(CONTROL, request.workers)
                reply = {"ok": False, "error": error} if error else {"ok": True, "workers": request.workers}
            case "stop":
                reply["pid"] = self._server.status()["pid"]
            case _:
                reply |= self._server.status()
        self.control.reply(conversation, reply)
        if request.command == "stop":
            self._server.stop(CONTROL, request.at_once)

    def _begin(
        self, conversation: ControlConnection, start: Callable[[str], None], askers: list[ControlConnection]
    ) -> None:
        self._refusals.clear()
        start(CONTROL)
        if self._refusals:
            self.control.reply(conversation, describe_outcome(self._refusals[0]))
        else:
            askers.append(conversation)

    def _reply_all(self, askers: list[ControlConnection], reply: dict[str, Any]) -> None:
        while askers:
            self.control.reply(askers.pop(), reply)


def describe_outcome(outcome: Event | None) -> dict[str, Any]:
    """How a reload or an upgrade ended; `outcome` is the last that was said of it."""
    match outcome:
        case Reloaded(generation):
            return {"ok": True, "generation": generation}
        case Upgraded(pid):
            return {"ok": True, "pid": pid}
        case None:
            return {"ok": False, "error": "the server was stopped meanwhile"}
    return {"ok": False, "error": str(outcome)}
