"""The catalogue of all that can be observed: an event is a class with its fields and the template of its log line.

Code that notices something passes an event to an `Emit`; it must not log by itself, and must not decide by an event.
Logs are a subscriber, in `observe/`. A field that a peer had a hand in comes from `text.escape_ascii`.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Callable
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Any, ClassVar, Protocol, Self, dataclass_transform

from .text import count_of


class _Formatter(string.Formatter):
    """Format `{workers:worker}` as a number and its noun: `1 worker`, `2 workers`."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return count_of(value, format_spec) if format_spec.isalpha() else format(value, format_spec)


_FORMATTER = _Formatter()


@dataclass_transform(frozen_default=True)
class Event:
    """Base of all events. A subclass annotates its fields and nothing else, and is made and compared like a dataclass.

    It is no dataclass, because the code of 55 dataclasses would take 30 ms to generate at every start. `level` is one
    of `logging`; a `rated` event is logged once per cause and second; `template` is formatted with the fields.
    """

    level: ClassVar[int]
    rated: ClassVar[bool]
    template: ClassVar[str] = ""
    __match_args__: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, level: int = INFO, rated: bool = False) -> None:
        cls.level = level
        cls.rated = rated
        names = (*cls.__match_args__, *cls.__annotations__)
        cls.__match_args__ = names  # type: ignore[misc]  # mypy knows them from the annotations

    def __init__(self, *values: Any, **named: Any) -> None:
        names = self.__match_args__
        vars(self).update(zip(names, values, strict=False), **named)
        if len(values) > len(names) or not vars(self).keys() <= set(names) or not all(hasattr(self, n) for n in names):
            raise TypeError(f"{type(self).__name__} takes {', '.join(names)}")

    def because_of(self, exception: BaseException) -> Self:
        """Keep the exception that the event tells of, for the service's own log handlers, and return the event."""
        vars(self)["_exception"] = exception
        return self

    @property
    def exception(self) -> BaseException | None:
        """The exception that was kept. Its text is not escaped, and it is no field."""
        found: BaseException | None = vars(self).get("_exception")
        return found

    def fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__match_args__}

    def __str__(self) -> str:
        return _FORMATTER.vformat(self.template, (), self.fields())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.fields().items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and type(self) is type(other) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash((type(self), *self.fields().values()))


Emit = Callable[[Event], None]


class HeldBack(Protocol):
    """Events that an `Emit` has held back: `flush` tells their number, when `next_due` says so or at the end.

    `on_held` is called when there are some, and there were none before.
    """

    on_held: Callable[[], object] | None

    def next_due(self) -> float | None: ...
    def flush(self, everything: bool = False) -> None: ...


def log(event: Event) -> None:
    """Log an event to the logger `prefork`: the `Emit` of a program that has set up no other."""
    logger = logging.getLogger("prefork")
    if logger.isEnabledFor(event.level):
        logger.handle(record_of(event, logger.name))


def record_of(event: Event, logger: str, more: str = "") -> logging.LogRecord:
    """Return the log record of an event, with `more` behind its message.

    A handler that the service has configured gets the exception too. The escaped traceback is `exc_text`, which
    `logging.Formatter` writes instead of formatting the exception, whose text could forge lines.
    """
    exc = event.exception
    exc_info = None if exc is None else (type(exc), exc, exc.__traceback__)
    record = logging.LogRecord(logger, event.level, __file__, 0, "%s%s", (event, more), exc_info)
    traceback: str = getattr(event, "traceback", "")
    if traceback:
        # Indented, otherwise an exception with several lines of text could begin one like a line of the log.
        record.exc_text = "".join(f"\n    {line}" for line in traceback.split("\n"))[1:]
    return record


# --- connections of one worker ----------------------------------------------------------------------------------------


class HandlerFailed(Event, level=ERROR, rated=True):
    """The handler of a connection raised; each line of `traceback` is escaped."""

    template = "handler failed for {peer}: {error}"
    peer: str
    error: str
    traceback: str = ""


class SubscriberFailed(Event, level=ERROR):
    """A callback of `prefork.subscribe` raised; logged once for each."""

    template = "subscriber {name} failed: {error} (further failures of it are not logged)"
    name: str
    error: str
    traceback: str = ""


class ConnectionLost(Event, level=DEBUG, rated=True):
    """A handler let an error pass that means its peer left or broke the protocol, which is no bug."""

    template = "connection of {peer} ended: {reason}"
    peer: str
    reason: str


class ReadLimitExceeded(Event, level=WARNING, rated=True):
    """A handler let the error of a line pass that is longer than the read limit, so the connection was closed."""

    template = "closed connection of {peer}: it sent a line of more than {limit} bytes (--read-limit)"
    peer: str
    limit: int


class ProxyHeaderMalformed(Event, level=WARNING, rated=True):
    """What a proxy sent is no PROXY header of a version that is accepted, so the connection was closed."""

    template = "closed connection of proxy {peer}: {reason} (--proxy-protocol)"
    peer: str
    reason: str


class ProxyHeaderMissing(Event, level=WARNING, rated=True):
    """A proxy did not send its PROXY header in time, so the connection was closed; `hint` is what may be the cause."""

    template = "closed connection of proxy {peer}: no PROXY header within {seconds:.9g} s (--proxy-timeout){hint}"
    peer: str
    seconds: float
    hint: str


class HandshakeFailed(Event, level=DEBUG, rated=True):
    """A peer did not complete the TLS handshake."""

    template = "TLS handshake with {peer} failed: {reason}"
    peer: str
    reason: str


class ConnectionAborted(Event, level=WARNING, rated=True):
    """A connection was aborted because a deadline passed or too much was unsent."""

    template = "aborted connection of {peer}: {reason}"
    peer: str
    reason: str


class ConnectionsKicked(Event, level=WARNING):
    """An operator had connections of a worker aborted; `what` are the peers that were named, `by` is the command."""

    template = "kicked {count:connection} of {what} ({by})"
    count: int
    what: str
    by: str


class ConnectionRefused(Event, level=WARNING, rated=True):
    """A connection was accepted and closed at once, because a limit was reached."""

    template = "refused {peer}: {reason}"
    peer: str
    reason: str


class AcceptPaused(Event, level=WARNING, rated=True):
    """Accepting stopped until a connection closes or a delay has passed: no descriptors, no memory, or a limit."""

    template = "accepting on {listener} paused: {reason}; resumes when a connection closes"
    listener: str
    reason: str


class AcceptSkipped(Event, level=DEBUG, rated=True):
    """A queued connection died before it was accepted."""

    template = "a connection on {listener} died before it was accepted: {reason}"
    listener: str
    reason: str


class DispatchFailed(Event, level=WARNING, rated=True):
    """Something else than a connection was in an inbox, or a worker has shut it down."""

    template = "inbox of worker {slot}: {reason}"
    slot: int
    reason: str


class ListenerBroken(Event, level=ERROR):
    """A listening socket failed for good, so the server that owns it stops."""

    template = "listening socket {listener} failed: {reason}"
    listener: str
    reason: str


# --- fork_processes ---------------------------------------------------------------------------------------------------


class ChildExited(Event):
    """A child of `fork_processes` exited with status 0, or by the signal that was passed on to it."""

    template = "child {task} (pid {pid}) {death}"
    task: int
    pid: int
    death: str


class ChildFailed(Event, level=WARNING):
    """A child of `fork_processes` ended in any other way; `outcome` is what follows from it."""

    template = "child {task} (pid {pid}) {death}, {outcome}"
    task: int
    pid: int
    death: str
    outcome: str


class ForkDelayed(Event, level=WARNING):
    """The system has no resources for another child; the others keep running, and the fork is repeated."""

    template = "cannot fork child {task}: {reason}; trying again until it works"
    task: int
    reason: str


# --- the supervisor ---------------------------------------------------------------------------------------------------


class Listening(Event):
    """A listening socket is bound; logged once per socket at the start."""

    template = "listening on {address} ({kind})"
    address: str
    kind: str


class GroupsReduced(Event, level=DEBUG):
    """A TLS context offers only P-256, because its list of groups cannot be set."""

    template = "TLS offers only the group P-256: the list of groups cannot be set: {reason}"
    reason: str


class BacklogCapped(Event, level=WARNING):
    """The kernel allows a shorter accept queue than `asked`."""

    template = "--backlog {asked}: the kernel caps it at {given} (raise net.core.somaxconn)"
    asked: int
    given: int


class CertificateExpires(Event, level=WARNING):
    """A certificate expires soon, or is one of an issuer; emitted at the start, at each reload, and once a day."""

    template = "--tls-cert {file}: {problem} (renew it)"
    file: str
    problem: str


class CertificateInvalid(Event, level=ERROR):
    """Clients refuse the certificate because of its dates; emitted at the start, at each reload, and once a day."""

    template = "--tls-cert {file}: {problem}, so clients refuse it (renew it)"
    file: str
    problem: str


class TLSRenewed(Event):
    """Changed files of TLS are in use for new handshakes; no worker was replaced."""

    template = "TLS renewed without a reload: {files}"
    files: str


class RenewalRefused(Event, level=ERROR):
    """Changed files of TLS cannot be used, for longer than a renewal takes; what was in use stays in use."""

    template = "TLS not renewed, the old certificates and keys stay in use: {reason}"
    reason: str


class RenewalUnusable(Event, level=ERROR):
    """A worker cannot use what the supervisor has handed out; it serves with what it had."""

    template = "this worker cannot use the renewed certificates and keys: {reason} (prefork reload)"
    reason: str


class FilesUnwatched(Event, level=WARNING):
    """A file of TLS is on another machine, and so it is not watched by itself."""

    template = "{file} is not watched, because {kind} is a file system of another machine (--tls-watch on)"
    file: str
    kind: str


class VariableUnknown(Event, level=WARNING):
    """A variable of the environment looks like an option, and there is none of that name."""

    template = "{variable}: no such option{hint}"
    variable: str
    hint: str


class NoDeadline(Event):
    """A silent peer may stay for ever; emitted at the start, and after a reload that changed it."""

    template = "no deadline for: {missing}"
    missing: str


class Ready(Event):
    """Every worker accepts connections; logged once, at the start."""

    template = "ready: {workers:worker}"
    workers: int


class WorkerExited(Event, level=WARNING):
    """A worker exited without being asked to; `delay` is the seconds until its slot is filled, or None for never.

    `connections` is the number of connections that were closed with it.
    """

    worker: int
    pid: int
    cause: str
    delay: float | None
    connections: int = 0

    def __str__(self) -> str:
        lost = f", {count_of(self.connections, 'connection')} with it" if self.connections else ""
        then = "" if self.delay is None else ", restarting" + (f" in {self.delay:.1f} s" if self.delay else "")
        return f"worker {self.worker} (pid {self.pid}) died: {self.cause}{lost}{then}"


class WorkerFailedToStart(Event, level=ERROR):
    """A replacement could not start; `reason` is what the worker reported."""

    template = "worker {worker} cannot start: {reason}"
    worker: int
    reason: str


class ForkFailed(Event, level=WARNING):
    """The system has no resources for another worker; the others keep serving, and the fork is repeated."""

    template = "cannot fork worker {worker}: {reason}; trying again until it works"
    worker: int
    reason: str


class CrashLoop(Event, level=ERROR):
    """Every slot is in a crash loop, and no worker accepts: the server ends. Workers that drain may go on."""

    template = "giving up: every worker keeps dying ({failures} times in a row), and none accepts"
    failures: int


class Stopping(Event):
    """The supervisor was asked to stop."""

    by: str
    at_once: bool

    def __str__(self) -> str:
        return f"stopping at once ({self.by})" if self.at_once else f"stopping ({self.by}): draining open connections"


class LameDuckBegan(Event):
    """The supervisor was asked to stop, and goes on accepting until balancers have noticed."""

    by: str
    seconds: float
    """Until the drain begins, at most."""
    quiet: float
    """Seconds without a new connection after which it begins sooner; 0: it does not."""

    def __str__(self) -> str:
        until = f"until none has come for {self.quiet:g} s, or for {self.seconds:g} s" if self.quiet else ""
        until = until or f"for {self.seconds:g} s more"
        return f"lame duck ({self.by}): new connections are accepted {until}, then it drains (--drain-delay)"


class LeavingSooner(Event):
    """The supervisor has handed over, and the workers that drain here have to end in time, because it was told to."""

    by: str
    at_once: bool

    def __str__(self) -> str:
        how = "at once" if self.at_once else "within --drain-timeout"
        return f"the old workers end {how} ({self.by})"


class DrainTimedOut(Event, level=WARNING):
    """Workers did not exit within the drain timeout and are killed."""

    template = "{workers:worker} still there after the drain timeout: killed"
    workers: int


class OldWorkerHurried(Event, level=WARNING):
    """An old worker may not drain without limit any more, as there are too many of its slot, or it is too large."""

    template = (
        "worker {slot} (pid {pid}) still drains, and {why}: its {connections:connection} will be aborted in "
        "{seconds:.0f} s (--drain-timeout)"
    )
    slot: int
    pid: int
    why: str
    connections: int
    seconds: float


class Stopped(Event):
    """The supervisor is about to exit."""

    template = "stopped (exit status {code})"
    code: int


class Drained(Event):
    """A worker has no connections any more: `closed` of them ended by themselves, and `aborted` had to be aborted."""

    closed: int
    aborted: int
    option: str = "--drain-timeout"
    """What the time was set by."""

    def __str__(self) -> str:
        end = f"{self.aborted} aborted ({self.option})" if self.aborted else "none aborted"
        return f"drained: {count_of(self.closed, 'connection')} closed, {end}"


class ServiceHandlesSigterm(Event, level=WARNING):
    """The service has set a handler for SIGTERM, which a stop does not call: workers drain by another signal."""

    template = (
        "the service handles SIGTERM itself ({handler}): a stop drains without calling that handler; do in drain() or "
        "stop() of the service what it does"
    )
    handler: str


class WorkerFailed(Event, level=ERROR):
    """An error that belongs to no connection: in `drain()` or `stop()` of a lifespan object, or in prefork."""

    template = "{what}: {error}"
    what: str
    error: str
    traceback: str = ""


class ProgramHasWorkers(Event, level=WARNING):
    """A program does not listen in its worker, but has started processes of its own."""

    template = (
        "worker {slot} (pid {pid}) does not listen, but its program has started processes of its own: tell it to serve "
        "in one process, as by hypercorn --workers 0, gunicorn's UvicornWorker replaced by uvicorn, sanic "
        "--single-process, or uvicorn without --workers and --reload"
    )
    slot: int
    pid: int


class ProgramEnded(Event, level=WARNING):
    """A program ended by itself, although its worker was not asked to."""

    template = "the program ended by itself: {how}"
    how: str


class ProgramTold(Event):
    """A draining worker has told its program to end: its connections have ended, or the program closes them."""

    template = "told the program to end, {seconds:.1f} s after it stopped accepting: {left:connection} open"
    seconds: float
    left: int


class ProgramStuck(Event, level=WARNING):
    """A program had to end, and did not: neither by its handler for SIGTERM nor by KeyboardInterrupt."""

    template = "the program did not end within {seconds:.0f} s after its drain; its process is ended"
    seconds: float


class NothingListens(Event, level=WARNING):
    """No worker listens on an address that is held, so connections to it are refused."""

    template = "{listener}: the program does not listen there, so connections are refused"
    listener: str


class HangTimeoutInapplicable(Event, level=WARNING):
    """Nothing beats in a program without an asyncio event loop."""

    template = "--hang-timeout does not apply: the program runs no asyncio event loop that could tell of a hang"


class OptionsInapplicable(Event, level=WARNING):
    """Limits and deadlines are set that only hold for servers on an event loop of asyncio or uvloop."""

    template = "the program accepts connections itself, so these do not apply to it: {options}"
    options: str


class BindRefused(Event, level=ERROR):
    """A program called bind(2) for an address that its supervisor cannot hold."""

    template = "{reason}"
    reason: str


class TasksStuck(Event, level=WARNING):
    """Tasks of the service are still running after their cancellation; the worker exits without them."""

    tasks: int
    names: str

    def __str__(self) -> str:
        verb = "was" if self.tasks == 1 else "were"
        return f"{count_of(self.tasks, 'task')} ignored cancellation and {verb} abandoned: {self.names}"


class WorkerHung(Event, level=ERROR):
    """The event loop of a worker was blocked for --hang-timeout; its stacks follow, and it is killed."""

    template = "worker {worker} (pid {pid}) hangs: its event loop has been blocked for {seconds:.1f} s (--hang-timeout)"
    worker: int
    pid: int
    seconds: float


class WorkerStacks(Event, level=ERROR):
    """The stacks of all threads of a hung worker."""

    template = "stacks of worker {worker} (pid {pid}), innermost call first:"
    worker: int
    pid: int
    traceback: str


# --- reload, recycling, scaling ---------------------------------------------------------------------------------------


class Reloading(Event):
    """A reload begins: workers are replaced one slot at a time."""

    template = "reloading ({by}): generation {generation}, one worker at a time"
    by: str
    generation: int


class Reloaded(Event):
    """Every slot has a worker of the new generation; the older workers drain or have exited."""

    template = "reloaded: every worker is of generation {generation}"
    generation: int


class OldWorkersGone(Event):
    """After a reload, the last worker of an earlier generation has exited."""

    template = "every worker before generation {generation} has exited"
    generation: int


class ReloadFailed(Event, level=ERROR):
    """A successor did not become ready, so the reload ends and the running workers stay, new ones among them."""

    template = "reload failed, the running workers stay: the successor of worker {worker} did not boot: {reason}"
    worker: int
    reason: str


class ReloadCalledOff(Event, level=WARNING):
    """A reload takes the place of the one under way, or of recycling, whose successor does not become ready."""

    template = "worker {worker} (pid {pid}) is not ready after {seconds:.0f} s: called off by the next reload"
    worker: int
    pid: int
    seconds: float


class OldConnectionsStay(Event):
    """After a reload, connections stay on old workers, until they end or for a time."""

    connections: int
    workers: int
    seconds: float | None
    """Until they are aborted; None: never."""

    def __str__(self) -> str:
        stay, end = ("stays", "until it ends") if self.connections == 1 else ("stay", "until they end")
        if self.seconds is not None:
            end = f"for up to {self.seconds:.0f} s (--reload-drain-timeout)"
        return f"{count_of(self.connections, 'connection')} {stay} on {count_of(self.workers, 'old worker')} {end}"


class ListenersChanged(Event):
    """A reload has added addresses, or has removed some."""

    added: tuple[str, ...]
    removed: tuple[str, ...]

    def __str__(self) -> str:
        added = [f"listening on {each} too" for each in self.added]
        return "; ".join([*added, *(f"not listening on {each} any more" for each in self.removed)])


class ReloadIgnored(Event, level=WARNING):
    """A reload was requested when none is possible, or its settings are invalid."""

    template = "not reloading ({by}): {reason}"
    by: str
    reason: str


class WatchingSources(Event):
    """A process watches the sources, and a change in them will be a reload."""

    template = "watching the Python files in {directories} (--reload)"
    directories: str


class SourcesUnwatched(Event, level=WARNING):
    """No process watches the sources now; logged once, until one does again. What changes meanwhile is found then."""

    template = "--reload: sources are not watched: {reason}; next try in {delay:.1f} s"
    reason: str
    delay: float


class ServiceMetricsFull(Event, level=WARNING):
    """There is no room for another series in the worker's memory; logged once."""

    template = "prefork.metrics: no room for another series (64 KiB a worker): {metric} is not shown in full"
    metric: str


class MetricsServed(Event):
    """The address of --metrics is bound; it is answered by a process of its own."""

    template = "metrics and status page on {address}"
    address: str


class AgentServed(Event):
    """The address of --agent is bound; it is answered by the process of --metrics."""

    template = "agent checks on {address}"
    address: str


class MetricsUnserved(Event, level=WARNING):
    """No process answers at the addresses of --metrics and --agent; logged once, until one does again. Connections
    wait meanwhile."""

    template = "{option}: not served: {reason}; next try in {delay:.1f} s"
    option: str
    reason: str
    delay: float


class WorkerLimitTooLow(Event, level=ERROR):
    """A new worker is beyond --max-worker-rss already, so it would be recycled for ever: the limit is ignored."""

    template = (
        "--max-worker-rss {limit}: a worker that has served nothing uses {rss} bytes, so the limit is ignored until a "
        "reload raises it"
    )
    limit: int
    rss: int


class Recycling(Event):
    """A worker is to be replaced, for `reason`: its successor is started, and it drains once that one is ready."""

    template = "recycling worker {worker} (pid {pid}): {reason}"
    worker: int
    pid: int
    reason: str


class RecycleFailed(Event, level=ERROR):
    """The successor of a recycled worker did not become ready, so the worker stays."""

    template = "worker {worker} stays, its successor did not boot: {reason}; next try in {delay:.0f} s"
    worker: int
    reason: str
    delay: float


class Suspended(Event, level=WARNING):
    """All workers were told to stop accepting; open connections go on."""

    template = "suspended ({by}): no worker accepts, and clients wait until prefork resume"
    by: str


class Resumed(Event):
    """All workers were told to accept again."""

    template = "resumed ({by}): the workers accept"
    by: str


class Scaled(Event):
    """The number of workers was changed."""

    template = "scaled ({by}): {workers:worker}"
    by: str
    workers: int


class ScaleIgnored(Event, level=WARNING):
    """A number of workers was requested that is not possible now."""

    template = "not scaling ({by}): {reason}"
    by: str
    reason: str


# --- upgrade ----------------------------------------------------------------------------------------------------------


class Upgrading(Event):
    """A new supervisor is started, from the program as it is installed now."""

    template = "upgrading ({by}): starting the installed program with the same sockets"
    by: str


class UpgradeWaits(Event):
    """An upgrade begins when the predecessor has ended, which still drained and has to hurry now."""

    template = (
        "upgrading ({by}): the previous supervisor ({pid}) ends first, whose connections have {seconds:.0f} s left "
        "(--drain-timeout)"
    )
    by: str
    pid: int
    seconds: float


class Upgraded(Event):
    """The new supervisor serves; this one drains its workers and exits."""

    template = "upgraded: supervisor {pid} is serving; draining this one"
    pid: int


class UpgradeFailed(Event, level=ERROR):
    """The new supervisor did not come to serve, so this one stays."""

    template = "upgrade failed, this server stays: {reason}"
    reason: str


class UpgradeIgnored(Event, level=WARNING):
    """An upgrade was requested when none is possible."""

    template = "not upgrading ({by}): {reason}"
    by: str
    reason: str


class RolledBack(Event, level=ERROR):
    """The new supervisor died while this one was still draining, so this one serves again."""

    template = "supervisor {pid} died: {cause}; serving again in its place"
    pid: int
    cause: str


class TookOver(Event):
    """This supervisor serves in place of its predecessor."""

    template = "took over from supervisor {pid}"
    pid: int


# --- listening sockets, files, the system -----------------------------------------------------------------------------


class FileLost(Event, level=ERROR):
    """The file of a unix socket that the server listens on was removed."""

    template = (
        "unix:{path} was unlinked: clients cannot connect "
        "(remove it from --bind and reload, add it back and reload; or restart)"
    )
    path: str


class ListenerReopened(Event, level=ERROR):
    """A listening socket was shut down by a process that shares it, and listens again."""

    template = "{listener} was shut down by another process; listening again"
    listener: str


class ListenerRestored(Event, level=ERROR):
    """A worker, or a process it started, set options on a shared listening socket; they are set back."""

    template = "{listener}: a worker or a process it started changed {options}; set back"
    listener: str
    options: str


class ListenerRebound(Event, level=ERROR):
    """Changed options cannot be set back, so the address is bound again and the workers are replaced."""

    template = (
        "{listener}: a worker or a process it started changed {options}, which cannot be set back; address bound again"
    )
    listener: str
    options: str


class ListenerDamaged(Event, level=ERROR):
    """Changed options cannot be set back, and the address cannot be bound again."""

    template = "{listener}: a worker or a process it started changed {options}, which cannot be set back: {reason}"
    listener: str
    options: str
    reason: str


class SupervisorFailed(Event, level=ERROR):
    """An unexpected exception in the supervisor; what runs keeps running."""

    template = "{what}: {error} (this is a bug in prefork: please report it)"
    what: str
    error: str
    traceback: str = ""


class SystemFailed(Event, level=ERROR, rated=True):
    """A system call of the supervisor failed without a known consequence, and is repeated."""

    template = "a system call of the supervisor failed: {reason} (in {where}); trying again"
    reason: str
    where: str


class PidfileUnwritten(Event, level=WARNING):
    """The pidfile could not be written; it is now empty, so that it holds no wrong pid."""

    template = "--pidfile {path}: {reason}; the file is locked, and left empty"
    path: str
    reason: str


class ControlUnavailable(Event, level=WARNING):
    """The control socket could not be made, so the server runs without one."""

    template = "no control socket: {reason} (give a path with --control, or --control off)"
    reason: str


class ReopenFailed(Event, level=WARNING):
    """A log file could not be opened again, so lines still go to the old one."""

    template = "log file {path} cannot be opened again: {reason}; still writing to the old one"
    path: str
    reason: str


class AccessLogLost(Event, level=WARNING, rated=True):
    """Lines of the access log could not be written, and were dropped."""

    template = "access log: {lines:line} lost: {reason}"
    lines: int
    reason: str


class Suppressed(Event, level=WARNING):
    """Events of one cause came too fast to be logged one by one, and none has come since."""

    count: int
    event: str
    cause: str

    def __str__(self) -> str:
        of = f"{self.event} ({self.cause})" if self.cause else self.event
        return f"{self.count} more of {of} {'was' if self.count == 1 else 'were'} not logged"
