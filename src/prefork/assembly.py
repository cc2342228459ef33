"""Putting the parts together: settings and a service become sockets, a supervisor, and workers.

The only file that knows both parent and worker. It decides nothing that outlives the start.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import importlib.util
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .config import (
    TLS,
    Address,
    FdAddress,
    Limits,
    Settings,
    SystemdAddress,
    TCPAddress,
    UnixAddress,
    parse_address,
)
from .core.facts import Finish
from .errors import BindError, ConfigError, ExitCode, PreforkError
from .events import BacklogCapped, ControlUnavailable, Emit, Listening, Stopped, visible
from .net.handlers import classify
from .observe.logs import configure
from .observe.manager import also_to_manager
from .parent.supervisor import Seat, Supervisor
from .system import control as control_folder
from .system.credentials import Identity, look_up
from .system.inherited import Passed, adopt
from .system.notify import Notifier
from .system.sockets import bind_sockets, bind_unix_socket, describe, unlink_unix_socket

# Imported before the fork, although only workers run it: a replacement is there sooner, its memory is shared, and it is
# of its supervisor's version, also when prefork has been upgraded on disk meanwhile.
from .worker import ending
from .worker import main as worker
from .worker.service import load

if TYPE_CHECKING:
    import ssl


def serve(
    target: object,
    *,
    bind: str | Sequence[str] = ":9000",
    workers: int = 0,
    tls: TLS | None = None,
    limits: Limits | None = None,
    **options: Any,
) -> None:
    """Do what `prefork serve TARGET` does, and leave by SystemExit with its exit code when it is done.

    `target` is the service itself or the text that names it. `bind` is an address or several; the other options are
    those of the command, with `_`: backlog, drain_timeout, ready_fd, loop, log_format, log_level. Call it in the main
    thread of a program that has started no event loop: it forks. A failure is told in one line on standard error.

    The caller's `finally` blocks and exit handlers run once, here: a worker never comes back out of this function.
    """
    try:
        addresses = tuple(parse_address(text) for text in ([bind] if isinstance(bind, str) else bind))
        settings = Settings(
            bind=addresses,
            workers=workers,
            tls=() if tls is None else (tls,),
            limits=Limits() if limits is None else limits,
            **options,
        )
        code = run(settings, target)
    except PreforkError as exc:
        sys.stderr.write(f"prefork: {visible(str(exc))}\n")
        code = exc.exit_code
    raise SystemExit(int(code))


def run(settings: Settings, target: object) -> ExitCode:
    """Serve until stopped. Returns the exit status, in the supervisor alone: a worker ends in here.

    Raises PreforkError for what the user has to read in one line. After it has returned because it was told to stop,
    SIGTERM and SIGINT are ignored: the process is at its end, and a second Ctrl-C shall not leave a traceback.
    """
    validate(settings)
    from .system import forksafety
    from .system.cpus import cpu_count

    forksafety.refuse_unsafe_fork("prefork.serve", stacklevel=3)
    notifier = Notifier()
    emit = also_to_manager(configure(settings.log_format, settings.log_level), notifier)
    context = _context(settings)
    identity = look_up(settings.user, settings.group)
    count = settings.workers or cpu_count()
    _set_title(target)
    with contextlib.ExitStack() as listening:
        listeners = _listen(settings, listening)
        for sock in listeners:
            emit(Listening(describe(sock), _kind(sock, context)))
        _check_backlog(settings, emit)
        control = _control(settings, listening, emit)
        announcer = _Announcer(settings.ready_fd)
        renew = functools.partial(_renew, settings, context)
        with Supervisor(
            count,
            settings.drain_timeout,
            emit,
            announcer.announce,
            renew,
            boot_timeout=settings.boot_timeout,
            hang_timeout=settings.hang_timeout,
            watchdog=notifier.watchdog,
            pat=lambda: notifier.send(WATCHDOG=1),
            control=control,
            listeners=[f"{describe(sock)} ({_kind(sock, context)})" for sock in listeners],
        ) as supervisor:
            outcome = supervisor.run()
            if isinstance(outcome, Seat):
                _work(outcome, announcer, settings, target, listeners, context, identity)
            # While signals are still held: an impatient second one must not prevent that socket files are removed.
            listening.close()
            emit(Stopped(outcome.code))
    if outcome.reason:
        raise _failure(outcome)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    return outcome.code


def _control(settings: Settings, listening: contextlib.ExitStack, emit: Emit) -> socket.socket | None:
    """The control socket, whose file goes when `listening` closes. Raises BindError for a path that was named."""
    if settings.control == "off":
        return None
    path = settings.control
    if not path:
        try:
            path = str(control_folder.make_folder() / f"{os.getpid()}.sock")
        except OSError as exc:
            emit(ControlUnavailable(visible(f"{exc.filename}: {(exc.strerror or str(exc)).lower()}")))
            return None
    sock = bind_unix_socket(path, 0o600, 16)
    listening.callback(sock.close)
    listening.callback(unlink_unix_socket, path, _inode(path))
    return sock


def _renew(settings: Settings, context: ssl.SSLContext | None) -> None:
    """Before a reload: the certificates that the successors inherit. Raises ConfigError."""
    if context is not None:
        from .system.contexts import renew_context

        renew_context(context, settings.tls)


def _work(
    seat: Seat,
    announcer: _Announcer,
    settings: Settings,
    target: object,
    listeners: Sequence[socket.socket],
    context: ssl.SSLContext | None,
    identity: Identity | None,
) -> NoReturn:
    """Be a worker to the end of the process. Whatever goes wrong, the caller's code must not go on in two processes."""
    code: int = ExitCode.BUG
    try:
        announcer.close()
        code = worker.run(
            worker.Equipment(
                slot=seat.slot,
                parent=seat.parent,
                status=seat.status.fileno(),
                lifeline=seat.lifeline,
                row=seat.row,
                dump_signal=seat.dump_signal,
                identity=identity,
                sockets=listeners,
                context=context,
                settings=settings,
                target=target,
                emit=configure(settings.log_format, settings.log_level, worker=seat.slot),
            )
        )
    except BaseException:
        traceback.print_exc()
    finally:
        ending.leave(code)


def check(settings: Settings, target: object) -> str:
    """Import the service, read the certificates, validate every option; bind nothing. What was found, in one line.

    Raises PreforkError.
    """
    validate(settings)
    _context(settings)
    handler = classify(load(target) if isinstance(target, str) else target)
    return f"{target} is a {handler.kind.value}"


def validate(settings: Settings) -> None:
    """What can be known to be wrong before anything is done. Raises ConfigError."""
    look_up(settings.user, settings.group)
    if settings.loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        raise ConfigError("--loop uvloop: uvloop is not installed (pip install 'prefork[uvloop]')")
    if settings.ready_fd is not None:
        try:
            os.fstat(settings.ready_fd)
        except OSError as exc:
            reason = os.strerror(exc.errno or 0).lower()
            raise ConfigError(f"--ready-fd {settings.ready_fd}: {reason} (the parent has to pass it on)") from exc
        if fcntl.fcntl(settings.ready_fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise ConfigError(f"--ready-fd {settings.ready_fd}: is open for reading only")


def _context(settings: Settings) -> ssl.SSLContext | None:
    """Made before the fork: the keys of session tickets live in it, and every worker inherits the same."""
    if not settings.tls:
        return None
    from .system.contexts import build_context

    return build_context(settings.tls)


def _listen(settings: Settings, stack: contextlib.ExitStack) -> list[socket.socket]:
    """All sockets, or none. Closing `stack` closes them and removes the files of unix sockets; a worker never does."""
    sockets: list[socket.socket] = []
    ports: set[int] = set()
    passed = Passed()
    for address in settings.bind:
        try:
            fresh = _bind(address, settings.backlog, passed)
        except BindError as exc:
            if exc.errno == errno.EADDRINUSE and isinstance(address, TCPAddress) and address.port in ports:
                raise BindError(exc.address, exc.errno, "another --bind of this command has it") from exc
            raise
        for sock in fresh:
            stack.callback(sock.close)
        if isinstance(address, UnixAddress):
            stack.callback(unlink_unix_socket, address.path, _inode(address.path))
        elif isinstance(address, TCPAddress):
            ports.add(address.port)
        sockets += fresh
    return sockets


def _bind(address: Address, backlog: int, passed: Passed) -> list[socket.socket]:
    if isinstance(address, FdAddress):
        return [adopt(address.fd)]
    if isinstance(address, SystemdAddress):
        return passed.take(address.name)
    if isinstance(address, UnixAddress):
        return [bind_unix_socket(address.path, address.mode, backlog)]
    try:
        return bind_sockets(address.port, address.host, backlog=backlog)
    except socket.gaierror as exc:
        raise BindError(str(address), errno.EADDRNOTAVAIL, (exc.strerror or str(exc)).lower()) from exc


def _inode(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _kind(sock: socket.socket, context: ssl.SSLContext | None) -> str:
    kind = "unix" if sock.family == socket.AF_UNIX else "tcp"
    return kind if context is None else f"{kind}, tls"


def _check_backlog(settings: Settings, emit: Emit) -> None:
    try:
        cap = int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return
    if settings.backlog > cap:
        emit(BacklogCapped(settings.backlog, cap))


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


def _failure(outcome: Finish) -> PreforkError:
    error = PreforkError(outcome.reason)
    error.exit_code = outcome.code
    return error


def _set_title(target: object) -> None:
    with contextlib.suppress(ImportError):
        import setproctitle

        name = target if isinstance(target, str) else getattr(target, "__qualname__", type(target).__qualname__)
        setproctitle.setproctitle(f"prefork: supervisor [{name}]")
