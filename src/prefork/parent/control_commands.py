"""What a request on the control socket leads to, and when it is answered.

`control_server.py` knows the bytes; the supervisor carries the requests out.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from ..core.control_protocol import Request
from ..core.facts import Failure
from ..core.progress import Progress
from .console import Console
from .control_server import ControlConnection, ControlSocket
from .waiting import WaitingClients

#: The sender that log lines name for reloads, scalings and stops from here.
CONTROL = "control socket"
#: Clients that wait for the end of a reload, an upgrade or a stop; each holds a descriptor.
MAX_WAITERS = 64


class ControlTarget(Protocol):
    """What a client can ask for. A request returns why it was refused, if it was.

    An outcome is None while the reload or upgrade is under way, then the generation or the pid, or why it failed.
    """

    @property
    def max_workers(self) -> int: ...
    def status(self) -> dict[str, Any]: ...
    def start_reload(self, by: str) -> Failure | None: ...
    def reload_progress(self) -> Progress: ...
    def reload_summary(self) -> dict[str, Any]: ...
    def reload_outcome(self) -> int | Failure | None: ...
    def start_upgrade(self, by: str) -> Failure | None: ...
    def upgrade_progress(self) -> Progress: ...
    def upgrade_summary(self) -> dict[str, Any]: ...
    def upgrade_outcome(self) -> int | Failure | None: ...
    def scale(self, by: str, workers: int) -> Failure | None: ...
    def scale_waits(self, workers: int) -> bool: ...
    def stop(self, by: str, at_once: bool) -> None: ...
    def stop_progress(self) -> Progress: ...


class ControlCommands:
    """Serves `control` for `target`. Owns the connections that wait for the end of a reload, an upgrade or a stop."""

    def __init__(self, control: ControlSocket, target: ControlTarget, console: Console) -> None:
        self._control = control
        self._target = target
        self._console = console
        self._reloads = WaitingClients(control, self._reload_reply, target.reload_progress)
        self._upgrades = WaitingClients(control, self._upgrade_reply, target.upgrade_progress)
        self._stops = WaitingClients(control, lambda: None, target.stop_progress)

    def serve(self, ready: set[int], now: float) -> None:
        """Receive, carry out and answer requests; `ready` are the descriptors that poll named."""
        for connection, request in self._control.receive_requests(ready, now):
            self._answer(connection, request, now)
        for each in self._waiting():
            each.serve(now)

    def next_due(self, now: float) -> float | None:
        """Return when a client is to hear how far its request is."""
        return min((due for each in self._waiting() if (due := each.next_due(now)) is not None), default=None)

    def finish(self, outcome: dict[str, Any]) -> None:
        """Reply to the clients that wait for the end of the server, as the last thing before that."""
        self._stops.reply(outcome)

    def _waiting(self) -> tuple[WaitingClients, ...]:
        return self._reloads, self._upgrades, self._stops

    def _answer(self, connection: ControlConnection, request: Request, now: float) -> None:
        reply: dict[str, Any] = {"ok": True}
        match request.command:
            case "reload" | "upgrade" if sum(map(len, self._waiting())) >= MAX_WAITERS:
                reply = _error(f"{MAX_WAITERS} clients are waiting already")
            case "reload":
                self._wait(connection, request, self._target.start_reload(CONTROL), self._reloads)
                return
            case "upgrade":
                self._wait(connection, request, self._target.start_upgrade(CONTROL), self._upgrades)
                return
            case "stop" if request.wait and sum(map(len, self._waiting())) < MAX_WAITERS:
                self._target.stop(CONTROL, request.at_once)
                self._wait(connection, request, None, self._stops)
                return
            case "scale":
                reply = self._scale(request.workers)
            case "attach" | "dump" | "suspend" | "resume" | "recycle":
                self._console.answer(connection, request, CONTROL, now)
                return
            case "stop":
                reply["pid"] = os.getpid()
            case _:
                reply |= self._target.status()
        self._control.reply(connection, reply)
        if request.command == "stop":
            self._target.stop(CONTROL, request.at_once)

    def _scale(self, workers: int) -> dict[str, Any]:
        if not 1 <= workers <= self._target.max_workers:
            wanted = f"workers must be from 1 to {self._target.max_workers}"
            return _error(f"{wanted}, not {workers} (more: a restart with --workers)")
        queued = self._target.scale_waits(workers)
        refusal = self._target.scale(CONTROL, workers)
        if refusal is not None:
            return _error(refusal.reason)
        return {"ok": True, "workers": workers, "queued": queued}

    def _reload_reply(self) -> dict[str, Any] | None:
        reply = _reply_of("generation", self._target.reload_outcome())
        return reply if reply is None or not reply["ok"] else reply | self._target.reload_summary()

    def _upgrade_reply(self) -> dict[str, Any] | None:
        reply = _reply_of("pid", self._target.upgrade_outcome())
        return reply if reply is None or not reply["ok"] else reply | self._target.upgrade_summary()

    def _wait(
        self, connection: ControlConnection, request: Request, refusal: Failure | None, waiting: WaitingClients
    ) -> None:
        if refusal is None:
            waiting.add(connection, request.progress)
        else:
            self._control.reply(connection, _error(refusal.reason))


def _reply_of(key: str, outcome: int | Failure | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return _error(outcome.reason) if isinstance(outcome, Failure) else {"ok": True, key: outcome}


def _error(reason: str) -> dict[str, Any]:
    return {"ok": False, "error": reason}
