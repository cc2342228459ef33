"""What generations of workers are made of: settings, sockets, certificates. Put together at the start, renewed for a
reload, packed up for a successor.

The supervisor's `Resources`. What it does when is the supervisor's business; how each thing is made is `system`'s.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Limits, Settings
from ..core.worker_state import Timing
from ..errors import BindError, ConfigError
from ..events import (
    BacklogCapped,
    ControlUnavailable,
    Emit,
    FileLost,
    Listening,
    NoDeadline,
    PidfileUnwritten,
    escape_controls,
)
from ..observe.logs import configure
from ..observe.reopen import LogFiles
from ..parent.generations import GenerationSpec
from ..system import control_client, paths, pidfile, tls_contexts
from ..system.cpus import cpu_count
from ..system.credentials import Identity, resolve_identity
from ..system.descriptors import Descriptor
from ..system.file_ownership import FileOwnership
from ..system.handover import HandoverWriter, InheritedState
from ..system.listen_options import ListenOptions, Sharing
from ..system.listeners import Listener, Listeners
from ..system.notify import Notifier
from ..system.scoreboard import FleetSetting
from ..system.signals import block_signals
from . import trust
from .listener_repair import ListenerRepair, replaced
from .sources import Source

if TYPE_CHECKING:
    import ssl

#: The deadlines that are off by default, in words.
_DEADLINES = {"first_byte_timeout": "first byte", "idle_timeout": "silence", "max_age": "age"}
#: Settings that hold from the start to the end: a reload with another value is refused.
_FIXED = ("reuse_port", "pidfile", "control", "user", "group", "insecure_paths", "leave_daemons")
_CONTROL_BACKLOG = 16


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What the workers of one generation get."""

    settings: Settings
    listeners: tuple[Listener, ...]
    context: ssl.SSLContext | None
    pair: tls_contexts.CertificatePair | None
    """The certificate that belongs in the context."""
    identity: Identity | None
    folder: str
    """Where the service is looked for: the real name of the folder."""


class ServerResources:
    """Owns what outlives workers. `source` gives the settings, each time as they are then. `close` it in the end."""

    def __init__(self, settings: Settings, source: Source, estate: InheritedState | None, notifier: Notifier) -> None:
        self._settings = settings
        self._source = source
        self._notifier = notifier
        self._home = _home()
        paths.set_base_directory(self._home)
        self._contexts: dict[str, ssl.SSLContext] = {}
        """By the kind of the key."""
        self._loaded: tls_contexts.CertificatePair | None = None
        self._identity: tuple[tuple[str, str], Identity | None] = (("", ""), None)
        self._told_of_backlog = 0
        self._told_of_deadlines = ""
        self._tenure = FileOwnership.OWNER if estate is None else FileOwnership.PROVISIONAL
        self._estate = estate
        self._listeners = Listeners(() if estate is None else estate.listeners)
        self._mender = ListenerRepair(self._listeners)
        self._control: Listener | None = None
        self._old_pidfile: pidfile.PidFile | None = None
        self._pidfile: pidfile.PidFile | None = None
        self._announcer = _Announcer(settings.ready_fd if estate is None else None)
        self.log_files = LogFiles(None if estate is None else estate.logs)

    @property
    def leave_daemons(self) -> bool:
        """Whether what has left the workers' groups may outlive us."""
        return self._settings.leave_daemons

    def close(self, shared: bool = False) -> None:
        """Close everything, and remove the files that are ours. May be called again. `shared`: the supervisor before
        this one has the sockets still."""
        self._listeners.close(shared=shared)
        paths.set_base_directory("")
        held, self._pidfile = self._pidfile, None
        if held is not None:
            if self._tenure.owns(held.inherited):
                held.remove()
            else:
                held.close()

    # --- plans --------------------------------------------------------------------------------------------------------

    def first(self, emit: Emit) -> GenerationSpec:
        """The plan of the start. Raises PreforkError."""
        self._emit = emit
        # A signal that ends us meanwhile waits until what was made is known here, and so is put away.
        with block_signals():
            # Before anything is made: the settings may come from a file that root must not believe.
            pair = self._prove(self._settings)
            self._take_pidfile()
            plan = self._make_plan(self._settings, pair)
            self._follow(plan)
        if self._estate is not None and plan.workers == self._estate.workers[0]:
            # Somebody has scaled the supervisor before this one.
            plan = dataclasses.replace(plan, workers=self._estate.workers[1])
        for text in plan.listeners:
            address, _, kind = text.partition(" (")
            emit(Listening(address, kind.rstrip(")")))
        self._check_deadlines()
        return plan

    def rebuild(self) -> GenerationSpec:
        """The plan for a reload, of what the files say now. Raises PreforkError, and nothing has changed then."""
        self._repair_listeners()
        before = _physical_folder()
        self._go(self._home)
        try:
            settings = self._source.settings()
            for field in _FIXED:
                if getattr(settings, field) != getattr(self._settings, field):
                    option = f"--{field.replace('_', '-')}"
                    raise ConfigError(f"{option}: cannot be changed while it runs; restart")
            validate(settings, starting=False)
            return self._make_plan(settings, self._prove(settings))
        finally:
            # Whoever is forked before the new plan has its turn is of the old one.
            self._go(before)

    def prepare_fork(self, plan: GenerationSpec) -> None:
        """Make this process one to fork a worker of this plan from: its folder, and its certificate."""
        kit = _kit(plan)
        self._go(kit.folder)
        if kit.context is not None and kit.pair is not None and kit.pair is not self._loaded:
            tls_contexts.load(kit.context, kit.pair)
            self._loaded = kit.pair

    def commit(self, plan: GenerationSpec) -> None:
        """Every worker is of this plan now: what is not theirs alone follows it."""
        self._follow(plan)
        self._check_deadlines()

    def _follow(self, plan: GenerationSpec) -> None:
        kit = _kit(plan)
        self._settings = kit.settings
        gid = None if kit.identity is None else kit.identity.gid
        self._listeners.apply_options(kit.listeners, kit.settings.bind, _listen_options(kit.settings, gid))
        configure(kit.settings.log_format, kit.settings.log_level)
        self._check_backlog()

    def release_unused(self, plans: Collection[GenerationSpec]) -> None:
        """Close the sockets that no plan has."""
        wanted = [listener for plan in plans for listener in _kit(plan).listeners]
        self._listeners.close_except([*wanted, *([self._control] if self._control else [])])
        if self._old_pidfile is not None and self._tenure is FileOwnership.OWNER:
            self._old_pidfile.remove()
            self._old_pidfile = None

    def end_listening(self) -> None:
        """Close all sockets but the control socket, and have the kernel refuse what comes to them."""
        self._listeners.close(but=self._control)

    def _prove(self, settings: Settings) -> tls_contexts.CertificatePair | None:
        return trust.prove(settings, self._source, self._look_up(settings))

    def _make_plan(self, settings: Settings, pair: tls_contexts.CertificatePair | None) -> GenerationSpec:
        context = None
        if pair is not None:
            # The same context as before, where there is one: the keys of session tickets live in it, and every worker
            # of every generation inherits them. Not for a key of another kind, which would stand beside the old one.
            context = self._context_for(pair)
        workers = settings.workers or cpu_count()
        listeners = self._listeners.bind(settings.bind, _listen_options(settings))
        return GenerationSpec(
            workers=workers,
            timing=Timing(settings.drain_timeout, settings.boot_timeout, settings.hang_timeout),
            limits=_fleet_limits(settings.limits),
            listeners=tuple(_with_tls(text, context) for each in listeners for text in each.describe()),
            equipment=GenerationConfig(settings, listeners, context, pair, self._look_up(settings), _physical_folder()),
        )

    def _context_for(self, pair: tls_contexts.CertificatePair) -> ssl.SSLContext:
        kind = pair.key_type()
        if kind not in self._contexts:
            self._contexts[kind] = tls_contexts.make_context(self._emit)
        return self._contexts[kind]

    def _look_up(self, settings: Settings) -> Identity | None:
        """Once for each user and group: where they are kept on another machine, looking them up takes its time."""
        wanted = (settings.user, settings.group)
        if wanted != self._identity[0]:
            self._identity = (wanted, resolve_identity(*wanted))
        return self._identity[1]

    def _check_backlog(self) -> None:
        try:
            cap = int(Path("/proc/sys/net/core/somaxconn").read_text())
        except (OSError, ValueError):
            return
        backlog, told = self._settings.backlog, self._told_of_backlog
        if backlog > cap and backlog != told:
            self._told_of_backlog = backlog
            self._emit(BacklogCapped(backlog, cap))

    def _check_deadlines(self) -> None:
        limits = self._settings.limits
        missing = [name for name in _DEADLINES if getattr(limits, name) is None]
        phases = ", ".join(f"{_DEADLINES[name]} (--{name.replace('_', '-')})" for name in missing)
        if phases and phases != self._told_of_deadlines:
            self._emit(NoDeadline(phases))
        self._told_of_deadlines = phases

    def _go(self, folder: str) -> None:
        """There; one that is gone is not gone to."""
        if folder:
            with contextlib.suppress(OSError):
                os.chdir(folder)

    # --- what else the supervisor asks for ----------------------------------------------------------------------------

    def notify_ready(self) -> None:
        """To whoever started us."""
        self._announcer.notify_ready()

    def set_ownership(self, tenure: FileOwnership) -> None:
        """After a hand-over, or when it is taken back, or was not to be."""
        self._tenure = self._listeners.ownership = tenure
        if tenure is FileOwnership.OWNER:
            if self._pidfile is not None and (reason := self._pidfile.write()):
                self._emit(PidfileUnwritten(escape_controls(self._pidfile.path), reason))
            for path in self._listeners.missing_files():
                self._emit(FileLost(escape_controls(path)))

    def export(self, channel: int, workers: int) -> tuple[HandoverWriter, Mapping[str, str]]:
        """Everything that we listen on, the pidfile, and the way to the service manager; with so many workers. Raises
        OSError, and UntrustedPaths where the program has become one that root must not run."""
        self._repair_listeners()
        self._go(self._home)
        # The successor is root, too, and runs what stands there now.
        trust.require((), self._settings, self._identity[1])
        held = self._pidfile
        estate = InheritedState(
            self._listeners.all(),
            None if held is None else (held.path, held.fileno()),
            (self._settings.workers or cpu_count(), workers),
            self.log_files.paths,
            self._source.file,
            self._home,
        )
        return HandoverWriter(channel, estate), self._notifier.variables

    def repair_listeners(self, plan: GenerationSpec) -> GenerationSpec | None:
        """A worker has ended otherwise than it should: it may have spoiled what it shares with all. `plan` with other
        sockets, if some had to be bound anew."""
        fresh = self._repair_listeners()
        kit = _kit(plan)
        listeners = replaced(kit.listeners, fresh)
        if listeners == kit.listeners:
            return None
        return dataclasses.replace(plan, equipment=dataclasses.replace(kit, listeners=listeners))

    def _repair_listeners(self) -> dict[Listener, Listener]:
        return self._mender.repair(self._emit)

    def notify_watchdog(self) -> None:
        """The service manager's watchdog."""
        self._notifier.send(WATCHDOG=1)

    def reopen_logs(self) -> None:
        """Those of the supervisor."""
        self.log_files.reopen(self._emit)

    # --- the start ----------------------------------------------------------------------------------------------------

    def bind_control(self, emit: Emit) -> Listener | None:
        """The control socket. Raises BindError for a path that was named; one of our own choice that cannot be is told,
        and done without."""
        path = self._settings.control
        if path == "off":
            return None
        try:
            with block_signals():
                self._control = self._listeners.bind_control(path, _CONTROL_BACKLOG) if path else self._bind_default()
        except OSError as exc:
            if path:
                raise
            reason = str(exc) if isinstance(exc, BindError) else f"{exc.filename}: {(exc.strerror or str(exc)).lower()}"
            emit(ControlUnavailable(escape_controls(reason)))
        return self._control

    def _bind_default(self) -> Listener:
        inherited = [each for each in self._listeners.all() if each.requested.startswith("control:")]
        if inherited:
            return inherited[0]
        return self._listeners.bind_control(
            str(control_client.make_socket_directory() / f"{os.getpid()}.sock"), _CONTROL_BACKLOG
        )

    def _take_pidfile(self) -> None:
        wanted = paths.absolute(self._settings.pidfile) if self._settings.pidfile else ""
        if self._estate is not None and self._estate.pidfile is not None:
            path, fd = self._estate.pidfile
            inherited = pidfile.PidFile(path, Descriptor(fd), inherited=True)
            if inherited.path == wanted:
                self._pidfile = inherited
                return
            # Removed when its owner is gone.
            self._old_pidfile = inherited
        self._pidfile = pidfile.claim(wanted) if wanted else None

    def private(self) -> list[pidfile.PidFile | _Announcer]:
        """What no worker may hold."""
        return [each for each in (self._pidfile, self._old_pidfile, self._announcer) if each is not None]

    def keep_in_worker(self, kit: GenerationConfig) -> None:
        """In a worker: close what is not for it."""
        self._listeners.close_unused_in_worker(kit.listeners)
        # The service may go where it likes.
        paths.set_base_directory("")


def validate(settings: Settings, starting: bool) -> None:
    """What can be known to be wrong before anything is done. Raises ConfigError."""
    if settings.loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        raise ConfigError("--loop uvloop: uvloop is not installed (pip install 'prefork[uvloop]')")
    if settings.ready_fd is not None and starting:
        try:
            os.fstat(settings.ready_fd)
        except OSError as exc:
            reason = os.strerror(exc.errno or 0).lower()
            raise ConfigError(f"--ready-fd {settings.ready_fd}: {reason} (the parent has to pass it on)") from exc
        if fcntl.fcntl(settings.ready_fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise ConfigError(f"--ready-fd {settings.ready_fd}: is open for reading only")


def _listen_options(settings: Settings, gid: int | None = None) -> ListenOptions:
    if not settings.reuse_port:
        return ListenOptions(settings.backlog, gid=gid)
    return ListenOptions(settings.backlog, Sharing.CLAIMED, group_size=settings.workers or cpu_count(), gid=gid)


def _fleet_limits(limits: Limits) -> dict[FleetSetting, int]:
    """What holds for all workers at once."""
    rate = limits.accept_rate
    return {
        FleetSetting.MAX_CONNECTIONS: limits.max_connections or 0,
        FleetSetting.MAX_PER_PEER: limits.max_connections_per_ip or 0,
        FleetSetting.ACCEPT_RATE: 0 if rate is None else max(1, round(rate * 1000)),
    }


def _with_tls(text: str, context: ssl.SSLContext | None) -> str:
    return text if context is None else f"{text[:-1]}, tls)"


def _kit(plan: GenerationSpec) -> GenerationConfig:
    assert isinstance(plan.equipment, GenerationConfig)
    return plan.equipment


def _physical_folder() -> str:
    """The current folder, without links; "" if it is gone."""
    with contextlib.suppress(OSError):
        return os.getcwd()
    return ""


def _home() -> str:
    """The current folder as the user names it; "" if it is gone."""
    with contextlib.suppress(OSError):
        return paths.logical_directory()
    return ""


class _Announcer:
    """Tells who started us that every worker accepts, once; a worker only closes its copy."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def notify_ready(self) -> None:
        """Write, and close."""
        if self._fd is not None:
            # Whoever wanted to know may have gone.
            with contextlib.suppress(OSError):
                os.write(self._fd, b"READY\n")
        self.close()

    def close(self) -> None:
        """Close the descriptor, unless it is a standard one, which is not ours alone."""
        if self._fd is not None and self._fd > 2:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = None
