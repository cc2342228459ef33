"""What a request on the control socket leads to, and when it is answered.

`control_server.py` knows the bytes; the supervisor carries the requests out.
"""

from __future__ import annotations

import socket
from typing import Any, Protocol

from ..core.control_protocol import Request
from ..core.facts import Failure
from .control_server import ControlConnection, ControlSocket

#: The sender that log lines name for reloads, scalings and stops from here.
CONTROL = "control socket"
#: Clients that wait for the end of a reload or an upgrade; each holds a descriptor.
MAX_WAITERS = 64


class ControlTarget(Protocol):
    """What a client can ask for. A request returns why it was refused, if it was.

    An outcome is None while the reload or upgrade is under way, then the generation or the pid, or why it failed.
    """

    @property
    def max_workers(self) -> int: ...
    def status(self) -> dict[str, Any]: ...
    def start_reload(self, by: str) -> Failure | None: ...
    def reload_outcome(self) -> int | Failure | None: ...
    def start_upgrade(self, by: str) -> Failure | None: ...
    def upgrade_outcome(self) -> int | Failure | None: ...
    def scale(self, by: str, workers: int) -> Failure | None: ...
    def stop(self, by: str, at_once: bool) -> None: ...
    def attach(self) -> tuple[dict[str, Any], list[socket.socket]]: ...
    def dump(self, connection: ControlConnection, slot: int) -> Failure | None: ...
    def suspend(self, by: str, suspended: bool) -> dict[str, Any]: ...
    def recycle(self, by: str, slot: int) -> Failure | None: ...


class ControlCommands:
    """Serves `control` for `target`. Owns the connections that wait for the end of a reload or an upgrade."""

    def __init__(self, control: ControlSocket, target: ControlTarget) -> None:
        self._control = control
        self._target = target
        self._reload_waiters: list[ControlConnection] = []
        self._upgrade_waiters: list[ControlConnection] = []

    def serve(self, ready: set[int], now: float) -> None:
        """Receive, carry out and answer requests; `ready` are the descriptors that poll named."""
        for connection, request in self._control.receive_requests(ready, now):
            self._answer(connection, request)
        if self._reload_waiters:
            self._reply_all(self._reload_waiters, "generation", self._target.reload_outcome())
        if self._upgrade_waiters:
            self._reply_all(self._upgrade_waiters, "pid", self._target.upgrade_outcome())

    def _answer(self, connection: ControlConnection, request: Request) -> None:
        reply: dict[str, Any] = {"ok": True}
        match request.command:
            case "reload" | "upgrade" if len(self._reload_waiters) + len(self._upgrade_waiters) >= MAX_WAITERS:
                reply = _error(f"{MAX_WAITERS} clients are waiting for a reload or an upgrade already")
            case "reload":
                self._wait(connection, self._target.start_reload(CONTROL), self._reload_waiters)
                return
            case "upgrade":
                self._wait(connection, self._target.start_upgrade(CONTROL), self._upgrade_waiters)
                return
            case "scale":
                reply = self._scale(request.workers)
            case "attach":
                told, sockets = self._target.attach()
                self._control.reply(connection, reply | told, sockets)
                return
            case "dump":
                refusal = self._target.dump(connection, request.worker)
                if refusal is None:
                    return
                reply = _error(refusal.reason)
            case "suspend" | "resume":
                reply |= self._target.suspend(CONTROL, request.command == "suspend")
            case "recycle":
                refusal = self._target.recycle(CONTROL, request.worker)
                reply = {"ok": True, "slot": request.worker} if refusal is None else _error(refusal.reason)
            case "stop":
                reply["pid"] = self._target.status()["pid"]
            case _:
                reply |= self._target.status()
        self._control.reply(connection, reply)
        if request.command == "stop":
            self._target.stop(CONTROL, request.at_once)

    def _scale(self, workers: int) -> dict[str, Any]:
        if not 1 <= workers <= self._target.max_workers:
            wanted = f"workers must be from 1 to {self._target.max_workers}"
            return _error(f"{wanted}, not {workers} (more: a restart with --workers)")
        refusal = self._target.scale(CONTROL, workers)
        return {"ok": True, "workers": workers} if refusal is None else _error(refusal.reason)

    def _wait(self, connection: ControlConnection, refusal: Failure | None, waiters: list[ControlConnection]) -> None:
        if refusal is None:
            waiters.append(connection)
        else:
            self._control.reply(connection, _error(refusal.reason))

    def _reply_all(self, waiters: list[ControlConnection], key: str, outcome: int | Failure | None) -> None:
        if outcome is None:
            return
        reply = _error(outcome.reason) if isinstance(outcome, Failure) else {"ok": True, key: outcome}
        while waiters:
            self._control.reply(waiters.pop(), reply)


def _error(reason: str) -> dict[str, Any]:
    return {"ok": False, "error": reason}
