"""Own what outlives workers: listening sockets, pidfile, control socket and log files, over reloads and upgrades.

`parent/supervisor.py` decides when each method is called, `generation_builder.py` makes a generation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..addresses import Address
from ..config import Settings
from ..core.worker_requests import BindRequest, Refused
from ..errors import BindError, ConfigError, PreforkError, reason_of
from ..events import (
    AgentServed,
    BindRefused,
    ControlUnavailable,
    Emit,
    FileLost,
    Listening,
    MetricsServed,
    NothingListens,
    PidfileUnwritten,
)
from ..observe.logs import configure
from ..observe.reopen import LogFiles
from ..parent.exporter import ExporterSpec
from ..parent.generations import GenerationSpec, RenewedTLS
from ..system import control_client, paths, pidfile
from ..system.descriptors import Closeable, Descriptor
from ..system.file_ownership import FileOwnership
from ..system.handover import HandoverWriter, InheritedState
from ..system.held_sockets import is_named
from ..system.listen_options import ListenOptions
from ..system.listeners import BoundAddress, Listeners, is_for_program
from ..system.notify import Notifier
from ..system.signals import block_signals
from ..system.sockets import inode
from ..system.tls_files import TLSFiles
from ..text import escape_controls
from ..worker.context import GenerationConfig
from . import trust
from .access_log import open_access_log
from .generation_builder import GenerationBuilder, listen_options, physical_directory, program_spec, worker_count
from .listener_repair import ListenerRepair
from .metrics_directory import MetricsDirectory
from .program_sockets import ProgramSockets, describe_sockets
from .settings_source import SettingsSource, locating
from .tls_watch import TLSWatch
from .validation import SettingsWarnings, require_unchanged, validate

_CONTROL_BACKLOG = 16
_EXPORTER_BACKLOG = 128


class ServerResources:
    """Owns the sockets and files of one server; `close` it in the end. Implements the supervisor's `Resources`.

    `settings` are those of the start; `source` gives those of each reload. `inherited` is what the predecessor of
    an upgrade has passed on.
    """

    def __init__(
        self,
        settings: Settings,
        source: SettingsSource,
        inherited: InheritedState | None,
        notifier: Notifier,
        emit: Emit,
    ) -> None:
        self._settings = settings
        """Those of the generation that serves."""
        self._source = source
        self._inherited = inherited
        self._notifier = notifier
        self._emit = emit
        self._home = ""
        """The current directory as the user names it; "" if it is gone."""
        with contextlib.suppress(OSError):
            self._home = paths.logical_directory()
        paths.set_base_directory(self._home)
        self._listeners = Listeners(() if inherited is None else inherited.listeners)
        self.program_sockets = ProgramSockets(self._listeners)
        self._announced: set[int] = set()
        """The inodes of the sockets of a program that were reported to listen."""
        self.metrics_directory: MetricsDirectory | None = None
        """Made with the first generation of a program."""
        self._listener_repair = ListenerRepair(self._listeners)
        self._builder = GenerationBuilder(self._listeners, emit)
        self._warnings = SettingsWarnings(emit)
        self._certificate_reloads = {"ok": 0, "failed": 0}
        self._tls_watch = TLSWatch(emit, self._warn_of_dates)
        self._control: BoundAddress | None = None
        self._metrics: BoundAddress | None = None
        self._agent: BoundAddress | None = None
        self._pidfile: pidfile.PidFile | None = None
        self._old_pidfile: pidfile.PidFile | None = None
        """The predecessor's, under another path: removed once it is this server's to remove."""
        self._ready_fd = _ReadyDescriptor(settings.ready_fd if inherited is None else None)
        self.log_files = LogFiles(None if inherited is None else inherited.logs)
        self.access_log: int | None = None
        """The descriptor of the access log."""

    def close(self, shared: bool = False) -> None:
        """Close everything, and remove the files that this server owns (idempotent).

        `shared`: the predecessor still has the sockets, so they are not shut down.
        """
        self._listeners.close(shared=shared)
        if self.metrics_directory is not None:
            self.metrics_directory.close()
        paths.set_base_directory("")
        held, self._pidfile = self._pidfile, None
        if held is not None:
            if self._listeners.ownership.owns(held.inherited):
                held.remove()
            else:
                held.close()

    # --- the start ----------------------------------------------------------------------------------------------------

    def build_first(self) -> GenerationSpec[GenerationConfig]:
        """Claim the pidfile, bind the addresses, and return the spec of the first generation. Raises PreforkError."""
        # A signal that ends the start waits until this object knows what was made; otherwise files would stay behind.
        with block_signals():
            # First of all, because the settings may come from a file that root must not trust.
            files = self._load_tls_files(self._settings)
            self._claim_pidfile()
            spec = self._builder.build(self._settings, files)
            self.access_log = open_access_log(self.log_files, self._settings.access_log, spec.config.identity)
            if spec.program is not None:
                self.metrics_directory = MetricsDirectory(spec.config.identity)
            self._apply(spec)
        if self._inherited is not None and spec.workers == self._inherited.workers[0]:
            # The settings ask for the same number as the predecessor's did, so a `scale` since then still counts.
            spec = dataclasses.replace(spec, workers=self._inherited.workers[1])
        for text in spec.listeners:
            address, _, kind = text.partition(" (")
            self._emit(Listening(address, kind.rstrip(")")))
        self._warn(spec)
        return spec

    def bind_control(self) -> BoundAddress | None:
        """Return the control socket; None if there is none.

        Raises ConfigError if a path that --control names cannot be bound. If the default path cannot be bound, logs it.
        """
        path = self._settings.control
        if path == "off":
            return None
        with block_signals():
            self._control = self._bind_named_control(path) if path else self._bind_default_control()
        return self._control

    def _bind_named_control(self, path: str) -> BoundAddress:
        try:
            return self._listeners.bind_control(path, _CONTROL_BACKLOG)
        except BindError as exc:
            raise _unbindable("--control", path, exc) from exc

    def _bind_default_control(self) -> BoundAddress | None:
        inherited = [each for each in self._listeners.all() if each.requested.startswith("control:")]
        if inherited:
            return inherited[0]
        try:
            path = control_client.make_socket_directory() / f"{os.getpid()}.sock"
            return self._listeners.bind_control(str(path), _CONTROL_BACKLOG)
        except OSError as exc:
            reason = str(exc) if isinstance(exc, BindError) else f"{exc.filename}: {reason_of(exc)}"
            self._emit(ControlUnavailable(escape_controls(reason)))
            return None

    def bind_exporter(self) -> ExporterSpec | None:
        """Bind the addresses of --metrics and --agent, and return what their process is; None if there is none.

        Raises ConfigError.
        """
        metrics, agent = self._settings.metrics, self._settings.agent
        if metrics is None and agent is None:
            return None
        identity = self._builder.identity(self._settings)
        options = ListenOptions(_EXPORTER_BACKLOG, gid=None if identity is None else identity.gid)
        with block_signals():
            if metrics is not None:
                self._metrics = _bind_observed("--metrics", self._listeners.bind_metrics, metrics, options)
            if agent is not None:
                self._agent = _bind_observed("--agent", self._listeners.bind_agent, agent, options)
        for text in () if self._metrics is None else self._metrics.describe():
            self._emit(MetricsServed(escape_controls(text)))
        for text in () if self._agent is None else self._agent.describe():
            self._emit(AgentServed(escape_controls(text)))
        return ExporterSpec(self._metrics, self._agent, identity, self._settings.log_format)

    def _kept(self) -> list[BoundAddress]:
        """Return the listeners that are neither the service's nor the program's."""
        return [each for each in (self._control, self._metrics, self._agent) if each is not None]

    def _claim_pidfile(self) -> None:
        wanted = paths.absolute(self._settings.pidfile) if self._settings.pidfile else ""
        if self._inherited is not None and self._inherited.pidfile is not None:
            path, fd = self._inherited.pidfile
            inherited = pidfile.PidFile(path, Descriptor(fd), inherited=True)
            if inherited.path == wanted:
                self._pidfile = inherited
                return
            self._old_pidfile = inherited
        self._pidfile = pidfile.claim(wanted) if wanted else None

    # --- generations --------------------------------------------------------------------------------------------------

    def rebuild(self) -> GenerationSpec[GenerationConfig]:
        """Return a spec made of what the files say now. Raises PreforkError; nothing has changed then."""
        self._listener_repair.repair_or_rebind(self._emit)
        before = physical_directory()
        _change_directory(self._home)
        try:
            with locating(self._source):
                settings = self._source.settings()
                require_unchanged(self._settings, settings)
                validate(settings, starting=False)
                return self._builder.build(settings, self._reload_tls_files(settings))
        finally:
            # A worker that is forked before the reload begins is of the old generation, and belongs in its directory.
            _change_directory(before)

    def _load_tls_files(self, settings: Settings) -> TLSFiles | None:
        return trust.load_tls_files(settings, self._source, self._builder.identity(settings))

    def _reload_tls_files(self, settings: Settings) -> TLSFiles | None:
        try:
            files = self._load_tls_files(settings)
        except PreforkError:
            self._certificate_reloads["failed"] += bool(settings.tls)
            raise
        self._certificate_reloads["ok"] += files is not None
        return files

    def certificate_reloads(self) -> dict[str, int]:
        """Return how often certificates were read again, by reloads and because they had changed, and how often they
        could not be used."""
        return {result: number + self._tls_watch.counts[result] for result, number in self._certificate_reloads.items()}

    def next_tls_look(self) -> float | None:
        """Return when to call `renew_tls`; None if connections speak no TLS."""
        return self._tls_watch.next_look()

    def renew_tls(
        self, spec: GenerationSpec[GenerationConfig], now: float
    ) -> RenewedTLS[GenerationConfig] | str | None:
        """Do what is due for the TLS of a generation that serves: see `TLSWatch.renew`."""
        renewed = self._tls_watch.renew(spec.config, now)
        if renewed is None or isinstance(renewed, str):
            return renewed
        files, handout = renewed
        return RenewedTLS(handout, lambda each: self._builder.renewed(each, spec.config.settings, files))

    def prepare_fork(self, spec: GenerationSpec[GenerationConfig]) -> None:
        """Go to the generation's directory, and use its certificates, before a worker of it is forked.

        Raises ConfigError, or OSError if memory or descriptors are short.
        """
        config = spec.config
        _change_directory(config.directory)
        if config.tls is not None and config.tls_files is not None and config.tls.files is not config.tls_files:
            config.tls.replace(config.tls_files)

    def commit(self, spec: GenerationSpec[GenerationConfig]) -> None:
        """Apply the settings of `spec` to what all generations share, because every worker is of it now."""
        self._apply(spec)
        self._warn(spec)

    def _warn(self, spec: GenerationSpec[GenerationConfig]) -> None:
        if spec.config.tls_files is not None:
            self._warn_of_dates(spec.config.tls_files)
        # A program may have deadlines of its own.
        if self._settings.program is None:
            self._warnings.check_deadlines(self._settings.limits)

    def _warn_of_dates(self, files: TLSFiles) -> None:
        for pair in files.pairs:
            self._warnings.check_certificate(pair)

    def _apply(self, spec: GenerationSpec[GenerationConfig]) -> None:
        config = spec.config
        settings = self._settings = config.settings
        options = listen_options(settings, config.identity)
        self._listeners.apply_options(config.listeners, settings.bind, options)
        configure(settings.log_format, settings.log_level)
        self._warnings.check_backlog(settings.backlog)

    def release_unused(self, specs: Collection[GenerationSpec[GenerationConfig]]) -> None:
        """Close the sockets that none of these specs has, because no other spec will be used any more."""
        wanted = [listener for spec in specs for listener in spec.config.listeners]
        wanted += self.program_sockets.bound()
        self._listeners.close_except([*wanted, *self._kept()])
        if self._old_pidfile is not None and self._listeners.ownership is FileOwnership.OWNER:
            self._old_pidfile.remove()
            self._old_pidfile = None

    def end_listening(self) -> None:
        """Close all sockets of the service, so that the kernel refuses new connections. Its operators are answered."""
        self._listeners.close(but=self._kept())

    def repair_listeners(self, spec: GenerationSpec[GenerationConfig]) -> GenerationSpec[GenerationConfig] | None:
        """Repair what a worker may have done to the shared sockets, because one died unasked.

        Return `spec` with other listeners if some had to be rebound, also for a program: workers of it have to replace
        those that run.
        """
        config = spec.config
        fresh = self._listener_repair.repair_or_rebind(self._emit)
        listeners = tuple(fresh.get(each, each) for each in config.listeners)
        if not fresh:
            return None
        return dataclasses.replace(
            spec,
            config=dataclasses.replace(config, listeners=listeners),
            program=program_spec(config.settings, listeners),
        )

    # --- what a program asks for --------------------------------------------------------------------------------------

    def find_for_program(
        self, spec: GenerationSpec[GenerationConfig], request: BindRequest
    ) -> socket.socket | Refused | None:
        return self.program_sockets.find(request, spec.config.listeners)

    def bind_for_program(self, spec: GenerationSpec[GenerationConfig], request: BindRequest) -> socket.socket | Refused:
        """Bind what a program asks for; it is held until the end."""
        bound = self.program_sockets.bind(request, spec.config.settings, spec.config.identity)
        if isinstance(bound, Refused):
            self._emit(BindRefused(escape_controls(bound.reason)))
        return bound

    def note_listening(self, number: int) -> bool:
        """Note that a worker listens on the socket with this inode, and say so for the first one. Return whether it is
        one that the workers have."""
        address = self._listeners.note_listening(number)
        if address and number not in self._announced:
            self._announced.add(number)
            self._emit(Listening(escape_controls(address), "unix" if address.startswith("unix:") else "tcp"))
        return address is not None

    def program_listeners(self) -> list[str]:
        """Return a description of each address that a program asked for and listens on."""
        found = [each for each in self.program_sockets.bound() if each.listens()]
        return [escape_controls(text) for bound in found for text in bound.describe()]

    def queues(self) -> list[dict[str, Any]]:
        """Return the accept queue of each address: how many connections wait, and how many may."""
        return self._listeners.queues()

    def current_socket(self, number: int) -> int | None:
        return self._listeners.current(number)

    def is_exclusive(self, spec: GenerationSpec[GenerationConfig], request: BindRequest) -> bool:
        return is_named(spec.config.settings.exclusive, request)

    def holds_path(self, path: str) -> bool:
        return self.program_sockets.holds_path(path)

    def silence_unused(self, listening: Collection[int]) -> None:
        """Have connections refused to the addresses on which no worker listens."""
        kept = [inode(sock) for bound in self._kept() for sock in bound.sockets()]
        for address in self._listeners.silence_unused({*listening, *kept}):
            self._emit(NothingListens(escape_controls(address)))

    def describe_sockets(self, sockets: Collection[int]) -> str:
        return escape_controls(describe_sockets(self._listeners, sockets))

    # --- files, and the processes before and after --------------------------------------------------------------------

    def set_ownership(self, ownership: FileOwnership) -> None:
        """Set whether this supervisor removes the unix sockets and the pidfile, which changes during an upgrade.

        As their owner it writes its PID into the pidfile, and logs the sockets whose files are gone.
        """
        self._listeners.ownership = ownership
        if ownership is FileOwnership.OWNER:
            if self._pidfile is not None and (reason := self._pidfile.write()):
                self._emit(PidfileUnwritten(escape_controls(self._pidfile.path), reason))
            for path in self._listeners.missing_files():
                self._emit(FileLost(escape_controls(path)))

    @property
    def was_suspended(self) -> bool:
        """Whether accepting was suspended in the predecessor."""
        return self._inherited is not None and self._inherited.suspended

    def export(self, channel: int, workers: int, suspended: bool) -> tuple[HandoverWriter, Mapping[str, str]]:
        """Return what a successor with `workers` workers gets: descriptors, and variables for its environment.

        Raises OSError. Raises UntrustedPathsError if another user could have changed the program since the start: the
        successor runs as root, too.
        """
        self._listener_repair.repair_or_rebind(self._emit)
        _change_directory(self._home)
        trust.require_trusted((), self._settings, self._builder.identity(self._settings))
        state = InheritedState(
            listeners=tuple(each for each in self._listeners.all() if not is_for_program(each) or each.listens()),
            pidfile=None if self._pidfile is None else (self._pidfile.path, self._pidfile.fileno()),
            workers=(worker_count(self._settings), workers),
            logs=self.log_files.paths,
            config=self._source.file,
            home=self._home,
            suspended=suspended,
        )
        return HandoverWriter(channel, state), self._notifier.variables

    def notify_ready(self) -> None:
        self._ready_fd.notify()

    def notify_watchdog(self) -> None:
        self._notifier.send(WATCHDOG=1)

    def reopen_logs(self) -> None:
        self.log_files.reopen(self._emit)

    # --- children -----------------------------------------------------------------------------------------------------

    def to_close_in_child(self) -> list[Closeable]:
        """Return what no worker may keep: the pidfile's lock would outlive the supervisor."""
        return [each for each in (self._pidfile, self._old_pidfile, self._ready_fd) if each is not None]

    def release_in_worker(self, config: GenerationConfig) -> None:
        """In a worker: close the listening sockets of other generations, and let the service change directory."""
        self._listeners.close_unused_in_worker((*config.listeners, *self.program_sockets.bound()))
        paths.set_base_directory("")


def _bind_observed(
    option: str, bind: Callable[[Address, ListenOptions], BoundAddress], address: Address, options: ListenOptions
) -> BoundAddress:
    try:
        return bind(address, options)
    except BindError as exc:
        raise _unbindable(option, str(address), exc) from exc


def _unbindable(option: str, value: str, exc: BindError) -> ConfigError:
    """Return the error of an option whose address cannot be bound; the exit status is that of --bind."""
    reason = "the directory does not exist" if exc.errno == errno.ENOENT else exc.strerror
    cure = f" ({exc.cure})" if exc.cure else ""
    failure = ConfigError(f"{option} {escape_controls(value)}: {reason}{cure}", option=option)
    failure.exit_code = exc.exit_code
    return failure


class _ReadyDescriptor:
    """The descriptor of --ready-fd: written to once, then closed. A worker only closes its copy."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def notify(self) -> None:
        if self._fd is not None:
            # The reader may be gone.
            with contextlib.suppress(OSError):
                os.write(self._fd, b"READY\n")
        self.close()

    def close(self) -> None:
        # A standard descriptor stays open, because other code writes to it.
        if self._fd is not None and self._fd > 2:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = None


def _change_directory(directory: str) -> None:
    """Go to `directory`; stay if it is "" or no longer exists."""
    if directory:
        with contextlib.suppress(OSError):
            os.chdir(directory)
