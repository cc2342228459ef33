"""Everything that can be observed, as one catalogue: each event is a class, and its text is the log line.

Code that notices something makes an event and hands it to an `Emit`; it never logs by itself. Logs (and later metrics)
are subscribers in `observe/`. Texts are built from `escape_ascii` wherever a peer had a hand in them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

FIELD_LIMIT = 256


def text_of(value: object) -> str:
    """`str(value)`, also where the value's own code raises: an exception of the service may be of any class."""
    try:
        return str(value)
    except Exception:
        return f"({type(value).__name__} has no text: its __str__ raises)"


def describe_error(exc: BaseException) -> str:
    """An exception in words: its class, and what it says."""
    text = text_of(exc)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def escape_ascii(value: object, limit: int = FIELD_LIMIT) -> str:
    """`value` as printable ASCII of at most `limit` characters: nothing a peer sends reaches a terminal raw."""
    text = text_of(value)[: limit + 1]
    escaped = "".join(c if " " <= c <= "~" else c.encode("unicode_escape", "replace").decode() for c in text)
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


def escape_controls(value: object, limit: int = FIELD_LIMIT) -> str:
    """The same for what the person who runs the server wrote: letters of every script stay, and what could break a line
    or steer a terminal (controls, line separators, bidirectional overrides, lone surrogates) is escaped."""
    text = text_of(value)[: limit + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class Event:
    """Base of the catalogue. `level` is a `logging` level; `rated` events are held to a line per cause and second."""

    __slots__ = ()
    level: ClassVar[int] = logging.INFO
    rated: ClassVar[bool] = False


Emit = Callable[[Event], None]


def log(event: Event) -> None:
    """An `Emit` for who has set up nothing else: to the logger `prefork`."""
    logger = logging.getLogger("prefork")
    if logger.isEnabledFor(event.level):
        detail = getattr(event, "traceback", "")
        logger.log(event.level, "%s%s", event, f"\n{detail}" if detail else "")


# --- one worker's connections -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HandlerFailed(Event):
    """The handler of one connection raised; `traceback` is the whole of it, its lines made printable one by one."""

    level: ClassVar[int] = logging.ERROR
    rated: ClassVar[bool] = True
    peer: str
    error: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"handler failed for {self.peer}: {self.error}"


@dataclass(frozen=True, slots=True)
class ConnectionLost(Event):
    """A handler let pass that its peer left, or broke the protocol: nobody's bug."""

    level: ClassVar[int] = logging.DEBUG
    rated: ClassVar[bool] = True
    peer: str
    reason: str

    def __str__(self) -> str:
        return f"connection of {self.peer} ended: {self.reason}"


@dataclass(frozen=True, slots=True)
class HandshakeFailed(Event):
    """A peer did not complete the TLS handshake."""

    level: ClassVar[int] = logging.DEBUG
    rated: ClassVar[bool] = True
    peer: str
    reason: str

    def __str__(self) -> str:
        return f"TLS handshake with {self.peer} failed: {self.reason}"


@dataclass(frozen=True, slots=True)
class ConnectionAborted(Event):
    """prefork itself cut a connection off: too much unsent, or a deadline passed."""

    level: ClassVar[int] = logging.WARNING
    rated: ClassVar[bool] = True
    peer: str
    reason: str

    def __str__(self) -> str:
        return f"aborted connection of {self.peer}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ConnectionRefused(Event):
    """A connection was accepted and closed at once, at a limit."""

    level: ClassVar[int] = logging.WARNING
    rated: ClassVar[bool] = True
    peer: str
    reason: str

    def __str__(self) -> str:
        return f"refused {self.peer}: {self.reason}"


@dataclass(frozen=True, slots=True)
class AcceptPaused(Event):
    """No room to accept (descriptors or memory): accepting rests until a connection closes, or a moment has passed."""

    level: ClassVar[int] = logging.WARNING
    rated: ClassVar[bool] = True
    listener: str
    reason: str

    def __str__(self) -> str:
        return f"accepting on {self.listener} paused: {self.reason}; it goes on as soon as a connection closes"


@dataclass(frozen=True, slots=True)
class AcceptSkipped(Event):
    """A queued connection died before it was accepted."""

    level: ClassVar[int] = logging.DEBUG
    rated: ClassVar[bool] = True
    listener: str
    reason: str

    def __str__(self) -> str:
        return f"a connection on {self.listener} was gone before it was accepted: {self.reason}"


@dataclass(frozen=True, slots=True)
class ListenerBroken(Event):
    """A listening socket failed for good; the server that owns it stops."""

    level: ClassVar[int] = logging.ERROR
    listener: str
    reason: str

    def __str__(self) -> str:
        return f"listening socket {self.listener} failed: {self.reason}"


# --- fork_processes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChildExited(Event):
    """A child of `fork_processes` is done: exit status 0, or the very signal that was passed on to it."""

    task: int
    pid: int
    death: str

    def __str__(self) -> str:
        return f"child {self.task} (pid {self.pid}) {self.death}"


@dataclass(frozen=True, slots=True)
class ChildFailed(Event):
    """A child of `fork_processes` ended otherwise; `outcome` says what follows from it."""

    level: ClassVar[int] = logging.WARNING
    task: int
    pid: int
    death: str
    outcome: str

    def __str__(self) -> str:
        return f"child {self.task} (pid {self.pid}) {self.death}, {self.outcome}"


@dataclass(frozen=True, slots=True)
class ForkDelayed(Event):
    """The system has no room for another process; what runs goes on, and the fork is tried again."""

    level: ClassVar[int] = logging.WARNING
    task: int
    reason: str

    def __str__(self) -> str:
        return f"cannot fork child {self.task}: {self.reason}; trying again until it works"


# --- the supervisor ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listening(Event):
    """A listening socket is bound; one line each at the start."""

    address: str
    kind: str

    def __str__(self) -> str:
        return f"listening on {self.address} ({self.kind})"


@dataclass(frozen=True, slots=True)
class GroupsReduced(Event):
    """A TLS context offers P-256 alone, because its list of groups cannot be set."""

    level: ClassVar[int] = logging.DEBUG
    reason: str

    def __str__(self) -> str:
        return f"TLS offers the group P-256 alone: the list of groups cannot be set: {self.reason}"


@dataclass(frozen=True, slots=True)
class BacklogCapped(Event):
    """The kernel takes a shorter queue than was asked for."""

    level: ClassVar[int] = logging.WARNING
    asked: int
    given: int

    def __str__(self) -> str:
        return f"--backlog {self.asked}: the kernel caps it at {self.given} (raise net.core.somaxconn)"


@dataclass(frozen=True, slots=True)
class NoDeadline(Event):
    """A peer may do nothing for ever: at the start, and when a reload has changed it."""

    phases: str

    def __str__(self) -> str:
        return f"no deadline for: {self.phases}"


@dataclass(frozen=True, slots=True)
class Ready(Event):
    """Every worker accepts."""

    workers: int

    def __str__(self) -> str:
        return f"ready: {self.workers} worker{'' if self.workers == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class WorkerExited(Event):
    """A worker ended otherwise than it was asked to; in `delay` seconds another takes its slot, None: none does."""

    level: ClassVar[int] = logging.WARNING
    worker: int
    pid: int
    cause: str
    delay: float | None

    def __str__(self) -> str:
        then = "" if self.delay is None else ", restarting" + (f" in {self.delay:.1f} s" if self.delay else "")
        return f"worker {self.worker} (pid {self.pid}) died: {self.cause}{then}"


@dataclass(frozen=True, slots=True)
class WorkerFailedToStart(Event):
    """A replacement could not start; the reason is the worker's own."""

    level: ClassVar[int] = logging.ERROR
    worker: int
    reason: str

    def __str__(self) -> str:
        return f"worker {self.worker} cannot start: {self.reason}"


@dataclass(frozen=True, slots=True)
class ForkFailed(Event):
    """The system has no room for another worker; those that run go on, and the fork is tried again."""

    level: ClassVar[int] = logging.WARNING
    worker: int
    reason: str

    def __str__(self) -> str:
        return f"cannot fork worker {self.worker}: {self.reason}; trying again until it works"


@dataclass(frozen=True, slots=True)
class CrashLoop(Event):
    """Workers die faster than restarting them makes sense, and none is left."""

    level: ClassVar[int] = logging.ERROR
    failures: int

    def __str__(self) -> str:
        return f"giving up: every worker keeps dying ({self.failures} times in a row), none is left"


@dataclass(frozen=True, slots=True)
class Stopping(Event):
    """The supervisor was asked to stop."""

    by: str
    at_once: bool

    def __str__(self) -> str:
        return f"stopping at once ({self.by})" if self.at_once else f"stopping ({self.by}): open connections may end"


@dataclass(frozen=True, slots=True)
class DrainTimedOut(Event):
    """Workers did not end in time after a drain, and are killed."""

    level: ClassVar[int] = logging.WARNING
    workers: int

    def __str__(self) -> str:
        return f"{self.workers} worker{'' if self.workers == 1 else 's'} still there after the drain timeout: killed"


@dataclass(frozen=True, slots=True)
class Stopped(Event):
    """The supervisor is about to exit."""

    code: int

    def __str__(self) -> str:
        return f"stopped (exit status {self.code})"


@dataclass(frozen=True, slots=True)
class Drained(Event):
    """A worker has ended its connections; so many of them had to be aborted."""

    aborted: int

    def __str__(self) -> str:
        if not self.aborted:
            return "drained: every connection ended by itself"
        return f"drained: {self.aborted} connection{'' if self.aborted == 1 else 's'} aborted at the drain timeout"


# --- logs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Suppressed(Event):
    """So many events of one cause came too fast to be logged one by one, and none of them since."""

    level: ClassVar[int] = logging.WARNING
    count: int
    event: str
    cause: str

    def __str__(self) -> str:
        of = f"{self.event} ({self.cause})" if self.cause else self.event
        return f"{self.count} more of {of} {'was' if self.count == 1 else 'were'} not logged"


@dataclass(frozen=True, slots=True)
class TasksStuck(Event):
    """Tasks of the service are still there after their cancellation; the worker ends without them."""

    level: ClassVar[int] = logging.WARNING
    tasks: int
    names: str

    def __str__(self) -> str:
        are = "task ignores its" if self.tasks == 1 else "tasks ignore their"
        return f"{self.tasks} {are} cancellation, left behind: {self.names}"


@dataclass(frozen=True, slots=True)
class WorkerFailed(Event):
    """Something raised in a worker that belongs to no connection: a lifespan object's `stop()`, or our own code."""

    level: ClassVar[int] = logging.ERROR
    what: str
    error: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.error}"


@dataclass(frozen=True, slots=True)
class Reloading(Event):
    """A reload begins: workers are replaced one slot at a time."""

    by: str
    generation: int

    def __str__(self) -> str:
        return f"reloading ({self.by}): generation {self.generation}, one worker at a time"


@dataclass(frozen=True, slots=True)
class Reloaded(Event):
    """Every worker is of the new generation; those before them are draining or gone."""

    generation: int

    def __str__(self) -> str:
        return f"reloaded: every worker is of generation {self.generation}"


@dataclass(frozen=True, slots=True)
class ReloadFailed(Event):
    """A successor did not become ready; what runs is kept, and the reload is off."""

    level: ClassVar[int] = logging.ERROR
    worker: int
    reason: str

    def __str__(self) -> str:
        return f"reload failed, what runs is kept: the successor of worker {self.worker} did not boot: {self.reason}"


@dataclass(frozen=True, slots=True)
class ReloadIgnored(Event):
    """A reload was asked for when there can be none."""

    level: ClassVar[int] = logging.WARNING
    by: str
    reason: str

    def __str__(self) -> str:
        return f"not reloading ({self.by}): {self.reason}"


@dataclass(frozen=True, slots=True)
class Recycling(Event):
    """A worker has served enough: its successor is started, and when that one is ready, it drains."""

    worker: int
    pid: int
    reason: str

    def __str__(self) -> str:
        return f"recycling worker {self.worker} (pid {self.pid}): {self.reason}"


@dataclass(frozen=True, slots=True)
class RecycleFailed(Event):
    """The successor of a worker that is to be recycled did not become ready; the worker goes on."""

    level: ClassVar[int] = logging.ERROR
    worker: int
    reason: str
    delay: float

    def __str__(self) -> str:
        return (
            f"worker {self.worker} is kept, its successor did not boot: {self.reason}; next try in {self.delay:.0f} s"
        )


@dataclass(frozen=True, slots=True)
class Upgrading(Event):
    """Another supervisor is started, of the program as it is installed now."""

    by: str

    def __str__(self) -> str:
        return f"upgrading ({self.by}): starting the installed program with the same sockets"


@dataclass(frozen=True, slots=True)
class Upgraded(Event):
    """It serves; this one drains its workers and leaves."""

    pid: int

    def __str__(self) -> str:
        return f"upgraded: supervisor {self.pid} serves; what is open here may end"


@dataclass(frozen=True, slots=True)
class UpgradeFailed(Event):
    """It did not come to serve; this one stays."""

    level: ClassVar[int] = logging.ERROR
    reason: str

    def __str__(self) -> str:
        return f"upgrade failed, what runs is kept: {self.reason}"


@dataclass(frozen=True, slots=True)
class UpgradeIgnored(Event):
    """An upgrade was asked for when there can be none."""

    level: ClassVar[int] = logging.WARNING
    by: str
    reason: str

    def __str__(self) -> str:
        return f"not upgrading ({self.by}): {self.reason}"


@dataclass(frozen=True, slots=True)
class RolledBack(Event):
    """The new supervisor died while ours was still draining: ours serves again."""

    level: ClassVar[int] = logging.ERROR
    pid: int
    cause: str

    def __str__(self) -> str:
        return f"supervisor {self.pid} died: {self.cause}; serving again in its place"


@dataclass(frozen=True, slots=True)
class TookOver(Event):
    """This supervisor serves in place of the one before."""

    pid: int

    def __str__(self) -> str:
        return f"took over from supervisor {self.pid}"


@dataclass(frozen=True, slots=True)
class FileLost(Event):
    """Somebody has removed the file of a unix socket that we listen on."""

    level: ClassVar[int] = logging.ERROR
    path: str

    def __str__(self) -> str:
        return f"the file of unix:{self.path} is gone: nobody can connect to it; restart, or reload without and with it"


@dataclass(frozen=True, slots=True)
class ListenerReopened(Event):
    """A listening socket had been shut down by a process that shares it, and listens again."""

    level: ClassVar[int] = logging.ERROR
    listener: str

    def __str__(self) -> str:
        return f"{self.listener} had been shut down, by a worker or what it has started; it listens again"


@dataclass(frozen=True, slots=True)
class ListenerRestored(Event):
    """A process that shares a listening socket had set options on it, which hold for all; they are set back."""

    level: ClassVar[int] = logging.ERROR
    listener: str
    options: str

    def __str__(self) -> str:
        return f"{self.listener}: a worker, or what it has started, had set {self.options}; set back"


@dataclass(frozen=True, slots=True)
class ListenerBoundAnew(Event):
    """The same, where they cannot be set back: the workers are replaced by some that have a fresh socket."""

    level: ClassVar[int] = logging.ERROR
    listener: str
    options: str

    def __str__(self) -> str:
        return (
            f"{self.listener}: a worker, or what it has started, had set {self.options}, which cannot be set back; "
            "bound anew"
        )


@dataclass(frozen=True, slots=True)
class ListenerDamaged(Event):
    """The same, where it cannot be bound anew."""

    level: ClassVar[int] = logging.ERROR
    listener: str
    options: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.listener}: a worker, or what it has started, had set {self.options}, which cannot be set back: "
            f"{self.reason}"
        )


@dataclass(frozen=True, slots=True)
class SupervisorFailed(Event):
    """Our own code raised where nothing should; what runs goes on."""

    level: ClassVar[int] = logging.ERROR
    what: str
    error: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.error} (this is a bug in prefork: please report it)"


@dataclass(frozen=True, slots=True)
class SystemFailed(Event):
    """A system call of the supervisor failed where nothing is known to follow from that; it is tried again."""

    level: ClassVar[int] = logging.ERROR
    rated: ClassVar[bool] = True
    reason: str
    where: str

    def __str__(self) -> str:
        return f"the supervisor goes on and tries again: {self.reason} (in {self.where})"


@dataclass(frozen=True, slots=True)
class PidfileUnwritten(Event):
    """The pidfile could not be written; it is empty now, so that no wrong number stands in it."""

    level: ClassVar[int] = logging.WARNING
    path: str
    reason: str

    def __str__(self) -> str:
        return f"--pidfile {self.path}: {self.reason}; it is locked, and empty"


@dataclass(frozen=True, slots=True)
class ReopenFailed(Event):
    """A log file could not be opened again; lines go where they went before."""

    level: ClassVar[int] = logging.WARNING
    path: str
    reason: str

    def __str__(self) -> str:
        return f"log file {self.path} cannot be opened again: {self.reason}; still writing to the old one"


@dataclass(frozen=True, slots=True)
class Scaled(Event):
    """The number of workers was changed."""

    by: str
    workers: int

    def __str__(self) -> str:
        return f"scaled ({self.by}): {self.workers} worker{'' if self.workers == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class ScaleIgnored(Event):
    """Another number of workers was asked for when it cannot be had."""

    level: ClassVar[int] = logging.WARNING
    by: str
    reason: str

    def __str__(self) -> str:
        return f"not scaling ({self.by}): {self.reason}"


@dataclass(frozen=True, slots=True)
class WorkerHung(Event):
    """A worker's loop has not turned for longer than --hang-timeout; its stacks follow, and it is killed."""

    level: ClassVar[int] = logging.ERROR
    worker: int
    pid: int
    seconds: float

    def __str__(self) -> str:
        return f"worker {self.worker} (pid {self.pid}) hangs: its loop has not turned for {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class WorkerStacks(Event):
    """Where the threads of a hung worker were."""

    level: ClassVar[int] = logging.ERROR
    worker: int
    pid: int
    traceback: str

    def __str__(self) -> str:
        return f"stacks of worker {self.worker} (pid {self.pid}), the innermost call first:"


@dataclass(frozen=True, slots=True)
class ControlUnavailable(Event):
    """There is no control socket; the server does without."""

    level: ClassVar[int] = logging.WARNING
    reason: str

    def __str__(self) -> str:
        return f"no control socket: {self.reason}; name a path by --control, or say --control off"
