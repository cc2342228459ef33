"""What generations of workers are made of: settings, sockets, certificates. Put together at the start, renewed for a
reload, packed up for a successor.

The supervisor's `Provider`. What it does when is the supervisor's business; how each thing is made is `system`'s.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Limits, Settings
from ..core.workers import Timing
from ..errors import BindError, ConfigError
from ..events import BacklogCapped, ControlUnavailable, Emit, Listening, visible
from ..observe.logs import configure
from ..observe.reopen import LogFiles
from ..parent.supervisor import Plan
from ..system import control as control_folder
from ..system import pidfile
from ..system.cpus import cpu_count
from ..system.credentials import Identity, look_up
from ..system.handover import Handover, Parcel
from ..system.listeners import Listener, Listeners
from ..system.notify import Notifier
from ..system.scoreboard import Fleet

if TYPE_CHECKING:
    import ssl

#: Settings that hold from the start to the end: a reload with another value is refused.
_FIXED = ("reuse_port", "pidfile", "control")
_CONTROL_BACKLOG = 16


@dataclass(frozen=True, slots=True)
class Kit:
    """What the workers of one generation get."""

    settings: Settings
    listeners: tuple[Listener, ...]
    context: ssl.SSLContext | None
    identity: Identity | None


class Provision:
    """Owns what outlives workers. `source` gives the settings, each time as they are then. `close` it in the end."""

    def __init__(
        self, settings: Settings, source: Callable[[], Settings], handed: Handover | None, notifier: Notifier
    ) -> None:
        self._settings = settings
        self._source = source
        self._notifier = notifier
        self._folder = _logical_folder()
        self._context: ssl.SSLContext | None = None
        self._owning = handed is None
        self._listeners = Listeners(() if handed is None else handed.listeners)
        self._control: Listener | None = None
        self._pidfile = self._take_pidfile(handed)
        self._announcer = _Announcer(settings.ready_fd if handed is None else None)
        self.log_files = LogFiles()

    def close(self) -> None:
        """Close everything, and remove the files that are ours. May be called again."""
        self._listeners.close()
        held, self._pidfile = self._pidfile, None
        if held is not None:
            if self._owning:
                held.remove()
            else:
                held.close()

    # --- plans --------------------------------------------------------------------------------------------------------

    def first(self, emit: Emit) -> Plan:
        """The plan of the start. Raises PreforkError."""
        self._emit = emit
        plan = self._make_plan(self._settings)
        for text in plan.listeners:
            address, _, kind = text.partition(" (")
            emit(Listening(address, kind.rstrip(")")))
        self._check_backlog()
        return plan

    def renew(self) -> Plan:
        """The plan for a reload, of what the files say now. Raises PreforkError, and nothing has changed then."""
        self._go_home()
        settings = self._source()
        for field in _FIXED:
            if getattr(settings, field) != getattr(self._settings, field):
                option = f"--{field.replace('_', '-')}"
                raise ConfigError(f"{option}: cannot be changed while it runs; restart")
        validate(settings, starting=False)
        plan = self._make_plan(settings)
        self._settings = settings
        configure(settings.log_format, settings.log_level)
        self._check_backlog()
        return plan

    def retain(self, plans: Collection[Plan]) -> None:
        """Close the sockets that no plan has."""
        kits = [plan.equipment for plan in plans]
        wanted = [listener for kit in kits if isinstance(kit, Kit) for listener in kit.listeners]
        self._listeners.keep([*wanted, *([self._control] if self._control else [])])

    def _make_plan(self, settings: Settings) -> Plan:
        from ..system import contexts

        identity = look_up(settings.user, settings.group)
        pair = contexts.prove(settings.tls) if settings.tls else None
        lanes = (settings.workers or cpu_count()) if settings.reuse_port else None
        listeners = self._listeners.arrange(settings.bind, settings.backlog, lanes)
        context = None
        if pair is not None:
            # The same context as before, where there is one: the keys of session tickets live in it, and every worker
            # of every generation inherits them.
            context = self._context = self._context or contexts.make_context()
            contexts.load(context, pair)
        return Plan(
            workers=settings.workers or cpu_count(),
            timing=Timing(settings.drain_timeout, settings.boot_timeout, settings.hang_timeout),
            limits=_fleet_limits(settings.limits),
            listeners=tuple(_with_tls(text, context) for each in listeners for text in each.describe()),
            equipment=Kit(settings, listeners, context, identity),
        )

    def _check_backlog(self) -> None:
        try:
            cap = int(Path("/proc/sys/net/core/somaxconn").read_text())
        except (OSError, ValueError):
            return
        if self._settings.backlog > cap:
            self._emit(BacklogCapped(self._settings.backlog, cap))

    def _go_home(self) -> None:
        """To the folder as it was named at the start: behind a symbolic link there may be another one by now."""
        with contextlib.suppress(OSError):
            os.chdir(self._folder)

    # --- what else the supervisor asks for ----------------------------------------------------------------------------

    def announce(self) -> None:
        """To whoever started us."""
        self._announcer.announce()

    def own(self, owning: bool) -> None:
        """After a hand-over, or when it is taken back."""
        self._owning = owning
        if owning:
            self._listeners.own()
            if self._pidfile is not None:
                self._pidfile.write()
        else:
            self._listeners.disown()

    def pack(self, channel: int) -> tuple[Parcel, Mapping[str, str]]:
        """Everything that we listen on, the pidfile, and the way to the service manager."""
        self._go_home()
        held = self._pidfile
        parcel = Parcel(channel, self._listeners.all(), None if held is None else (held.path, held.fileno()))
        return parcel, self._notifier.variables

    def pat(self) -> None:
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
            self._control = self._listeners.bind_control(path, _CONTROL_BACKLOG) if path else self._bind_default()
        except OSError as exc:
            if path:
                raise
            reason = str(exc) if isinstance(exc, BindError) else f"{exc.filename}: {(exc.strerror or str(exc)).lower()}"
            emit(ControlUnavailable(visible(reason)))
        return self._control

    def _bind_default(self) -> Listener:
        inherited = [each for each in self._listeners.all() if each.asked.startswith("control:")]
        if inherited:
            return inherited[0]
        return self._listeners.bind_control(str(control_folder.make_folder() / f"{os.getpid()}.sock"), _CONTROL_BACKLOG)

    def _take_pidfile(self, handed: Handover | None) -> pidfile.PidFile | None:
        wanted = os.path.abspath(self._settings.pidfile) if self._settings.pidfile else ""
        if handed is not None and handed.pidfile is not None:
            inherited = pidfile.PidFile(*handed.pidfile)
            if inherited.path == wanted:
                return inherited
            inherited.close()
        return pidfile.claim(wanted) if wanted else None

    def private(self) -> list[pidfile.PidFile | _Announcer]:
        """What no worker may hold."""
        return [each for each in (self._pidfile, self._announcer) if each is not None]

    def keep_in_worker(self, kit: Kit) -> None:
        """In a worker: close what is not for it."""
        self._listeners.keep_in_worker(kit.listeners)


def validate(settings: Settings, starting: bool) -> None:
    """What can be known to be wrong before anything is done. Raises ConfigError."""
    look_up(settings.user, settings.group)
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


def _fleet_limits(limits: Limits) -> dict[Fleet, int]:
    """What holds for all workers at once."""
    rate = limits.accept_rate
    return {
        Fleet.MAX_CONNECTIONS: limits.max_connections or 0,
        Fleet.MAX_PER_PEER: limits.max_connections_per_ip or 0,
        Fleet.ACCEPT_RATE: 0 if rate is None else max(1, round(rate * 1000)),
    }


def _with_tls(text: str, context: ssl.SSLContext | None) -> str:
    return text if context is None else f"{text[:-1]}, tls)"


def _logical_folder() -> str:
    """The current folder as the user names it, with its symbolic links, if the shell told."""
    named = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return named
    return os.getcwd()


class _Announcer:
    """Tells who started us that every worker accepts, once; a worker only closes its copy."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def announce(self) -> None:
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
