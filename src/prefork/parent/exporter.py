"""The process of `--metrics` as the supervisor has it: start it, answer it, and replace it when it dies.

It runs the workers' user, so it is not trusted: it can ask for the status, and for nothing else. What it does is in
`exporter/`. The supervisor never waits for it.
"""

from __future__ import annotations

import contextlib
import enum
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.control_protocol import REQUEST_LIMIT, BadRequest, decode_request, encode_reply
from ..core.exporter_settings import LOADED, SERVE, SILENCE_TIMEOUT, ExporterSettings, encode
from ..errors import reason_of
from ..events import Emit, MetricsUnserved
from ..system.child import Child
from ..system.credentials import Identity
from ..system.listeners import BoundAddress
from ..system.processes import REAP_INTERVAL, System
from .restarts import Restarts

#: Seconds between two requests that are answered: a process that floods the connection does not keep this one busy.
REQUEST_INTERVAL = 0.05
#: Seconds that a supervisor waits with its takeover for a process that could serve.
LOAD_TIMEOUT = 10.0
#: Seconds that the process has for the answers under way, when another supervisor serves: it dies with this one.
LAST_ANSWERS_TIME = 2.0
#: Imports prefork also where it is not installed: from where this process has it. That comes last in the path, because
#: it may be the folder of all packages, which must not come before the standard library.
_PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); from prefork.exporter.__main__ import main; main()"
#: Variables that the process gets: what its interpreter and its messages need, and none of the service's secrets.
_KEPT_VARIABLES = ("LANG", "LD_LIBRARY_PATH", "LC_", "PATH", "PREFORK_PURE", "PYTHON", "TZ", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True)
class ExporterSpec:
    """What the process serves, and as which user."""

    metrics: BoundAddress | None
    agent: BoundAddress | None
    identity: Identity | None
    log_format: str


class _Step(enum.Enum):
    """How far a process is. It only goes forward; one that does not have to wait begins with the last."""

    LOADING = enum.auto()
    LOADED = enum.auto()
    """It waits to be told to serve."""
    SERVING = enum.auto()


@dataclass(slots=True)
class _Process:
    """One process, with what the supervisor holds for it."""

    child: Child
    link: socket.socket | None
    """None: it was told to end."""
    step: _Step
    received: bytes = b""
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    answer_again_at: float = 0.0
    ready_at: float | None = None
    """When it asked for the first time."""
    heard_at: float = 0.0
    """When it asked for the last time, or was started."""
    ends_by: float | None = None
    """When it has to have ended by itself, because it is not wanted any more; None: it is."""


class Exporter:
    """Owns the process, one at a time, and its connection. Does nothing if `spec` is None.

    `status` returns what a request is answered with.
    """

    def __init__(
        self, spec: ExporterSpec | None, system: System, emit: Emit, status: Callable[[], dict[str, Any]]
    ) -> None:
        self._spec = spec
        self._system = system
        self._emit = emit
        self._status = status
        self._parent = os.getpid()
        self._process: _Process | None = None
        self._restarts = Restarts()
        self._wanted = False
        self._held = False
        """Another supervisor serves, and this one is about to."""
        self._held_since = 0.0

    @property
    def pid(self) -> int:
        """The pid of the process; 0 if none runs."""
        return 0 if self._process is None else self._process.child.pid

    def is_prepared(self, now: float) -> bool:
        """Return whether a takeover need not wait: the process has loaded, there is none, or it takes too long."""
        waits = self._held and self._process is not None and self._process.step is _Step.LOADING
        return not waits or now >= self._held_since + LOAD_TIMEOUT

    def must_wait(self, now: float) -> bool:
        """Return whether this process must not end yet, because the other one finishes its answers."""
        ends_by = None if self._process is None else self._process.ends_by
        return ends_by is not None and now < ends_by

    # --- polling ------------------------------------------------------------------------------------------------------

    def interests(self, now: float) -> dict[int, int]:
        process = self._process
        if process is None:
            return {}
        wanted = {process.child.fileno(): select.POLLIN} if process.child.pollable else {}
        if process.link is not None:
            if process.unsent:
                wanted[process.link.fileno()] = select.POLLOUT
            elif process.step is not _Step.LOADED and now >= process.answer_again_at:
                wanted[process.link.fileno()] = select.POLLIN
        return wanted

    def next_due(self, now: float) -> float | None:
        """Return when to start the process, to read from it again, or to look for its exit without a pidfd."""
        process = self._process
        if self._spec is None or (process is None and not self._wanted):
            return None
        if process is None:
            return self._restarts.start_at
        times = [process.heard_at + SILENCE_TIMEOUT]
        times += [] if self.is_prepared(now) else [self._held_since + LOAD_TIMEOUT]
        times += [] if process.child.pollable else [now + REAP_INTERVAL]
        times += [process.ends_by] if self.must_wait(now) and process.ends_by is not None else []
        return min([*times, *([process.answer_again_at] if now < process.answer_again_at else [])])

    def collect(self, now: float, wanted: bool, soon: bool = False) -> None:
        """Answer the process, reap it if it has ended, and start the next one when that is due.

        `wanted`: this supervisor is the one that serves. Another one's process answers otherwise, at the same address.
        `soon`: it is about to serve, so its process loads, and serves later. Otherwise health checks would wait for the
        start of an interpreter after every upgrade.
        """
        held = soon and not wanted
        if held and not self._held:
            self._held_since = now
        self._held = held
        self._wanted = wanted = wanted or soon
        if self._spec is None:
            return
        process = self._process
        if process is None:
            if wanted and now >= self._restarts.start_at:
                self._start(self._spec, now)
            return
        if not wanted and process.ends_by is None:
            process.ends_by = now + LAST_ANSWERS_TIME
            self._let_go(process)
        if process.step is not _Step.SERVING:
            self._prepare(process, now)
        elif process.link is not None and (process.unsent or now >= process.answer_again_at):
            self._converse(process, now)
        if now >= process.heard_at + SILENCE_TIMEOUT:
            # Health checks would hang with it. Its end is reaped in a moment, and the next one started.
            process.child.signal(signal.SIGKILL)
            process.heard_at = now
        status = process.child.reap()
        if status is not None:
            uptime = None if process.ready_at is None else now - process.ready_at
            self._forget(process)
            if wanted:
                self._retry(f"its process died: {status.describe()}", uptime, now)

    def close(self) -> None:
        """Kill and reap the process."""
        if self._process is not None:
            self._process.child.signal(signal.SIGKILL)
            self._process.child.wait()
            self._forget(self._process)

    # --- the process --------------------------------------------------------------------------------------------------

    def _start(self, spec: ExporterSpec, now: float) -> None:
        self._restarts.on_start(now)
        try:
            here, there = socket.socketpair()
        except OSError as exc:
            self._retry(reason_of(exc), None, now)
            return
        with contextlib.closing(there):
            try:
                here.setblocking(False)
                self._system.close_in_child(here)
                child = self._execute(spec, there.fileno())
            except (OSError, MemoryError) as exc:
                here.close()
                self._retry(reason_of(exc), None, now)
                return
        self._process = _Process(child, here, _Step.LOADING if self._held else _Step.SERVING, heard_at=now)

    def _execute(self, spec: ExporterSpec, link: int) -> Child:
        identity = spec.identity
        settings = ExporterSettings(
            _descriptors(spec.metrics),
            _descriptors(spec.agent),
            link,
            self._parent,
            uid=None if identity is None else identity.uid,
            gid=None if identity is None else identity.gid,
            user="" if identity is None else identity.name,
            log_format=spec.log_format,
            waits=self._held,
        )
        command = [*interpreter(), "-c", _PROGRAM, str(Path(__file__).parents[2]), encode(settings)]
        return self._system.execute(
            command, environment(os.environ), [*settings.listeners, *settings.agents, link], _report
        )

    def _prepare(self, process: _Process, now: float) -> None:
        """Hear that the process has loaded, and tell it to serve as soon as this supervisor does."""
        process.heard_at = now
        if process.link is None:
            return
        if process.step is _Step.LOADING:
            with contextlib.suppress(BlockingIOError):
                # Whatever it says; and if it has ended, that is noticed elsewhere.
                process.link.recv(len(LOADED))
                process.step = _Step.LOADED
        if not self._held:
            process.step = _Step.SERVING
            with contextlib.suppress(OSError):
                process.link.send(SERVE)

    def _converse(self, process: _Process, now: float) -> None:
        """Send what is unsent, or read a request and answer it."""
        assert process.link is not None
        try:
            if not process.unsent:
                data = process.link.recv(REQUEST_LIMIT)
                if not data:
                    # It is about to end, or has closed its end and is of no use.
                    process.child.signal(signal.SIGKILL)
                    self._let_go(process)
                    return
                self._answer(process, data, now)
            if process.unsent:
                process.unsent = process.unsent[process.link.send(process.unsent) :]
        except BlockingIOError:
            return
        except OSError:
            process.child.signal(signal.SIGKILL)
            self._let_go(process)

    def _answer(self, process: _Process, data: bytes, now: float) -> None:
        process.answer_again_at = now + REQUEST_INTERVAL
        process.heard_at = now
        # One that was told to serve before it had loaded says that now.
        line, newline, _ = (process.received + data).lstrip(LOADED).partition(b"\n")
        if not newline:
            process.received = line[-REQUEST_LIMIT:]
            return
        # One request is answered at a time, and whatever was sent behind it is dropped.
        process.received = b""
        try:
            request = decode_request(line)
            reply = {"ok": True, **self._status()} if request.command == "status" else {"ok": False, "error": "refused"}
        except BadRequest as exc:
            reply = {"ok": False, "error": str(exc)}
        if process.ready_at is None:
            process.ready_at = now
            self._restarts.on_work()
        process.unsent = memoryview(encode_reply(reply))

    def _let_go(self, process: _Process) -> None:
        """Close the connection to the process, which then finishes its answers and ends."""
        if process.link is not None:
            process.link.close()
            process.link = None

    def _retry(self, reason: str, uptime: float | None, now: float) -> None:
        """Start the next process later. Say so once, until one of them serves again."""
        self._restarts.on_failure(uptime, now, lambda wait: self._emit(MetricsUnserved(self._options(), reason, wait)))

    def _options(self) -> str:
        spec = self._spec
        given = () if spec is None else (("--metrics", spec.metrics), ("--agent", spec.agent))
        return " and ".join(option for option, bound in given if bound is not None)

    def _forget(self, process: _Process) -> None:
        self._let_go(process)
        process.child.close()
        self._process = None


def _descriptors(bound: BoundAddress | None) -> tuple[int, ...]:
    return () if bound is None else tuple(sock.fileno() for sock in bound.sockets())


def interpreter() -> list[str]:
    """Return the command of a fresh interpreter that does not import from the current directory.

    Any user who can write there could otherwise have root run code.
    """
    flags = [("-I", sys.flags.isolated), ("-E", sys.flags.ignore_environment), ("-s", sys.flags.no_user_site)]
    return [sys.executable, "-P", *(flag for flag, is_set in flags if is_set)]


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what the process finds in its environment."""
    return {name: value for name, value in variables.items() if name.startswith(_KEPT_VARIABLES)}


def _report(exc: OSError) -> None:
    """Say, in the new process, that the interpreter cannot be executed; its exit status says the rest."""
    with contextlib.suppress(OSError):
        os.write(2, f"prefork: --metrics: {sys.executable}: {reason_of(exc)}\n".encode(errors="backslashreplace"))
