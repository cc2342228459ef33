"""Putting the parts together: settings and a service become sockets, a supervisor, and workers.

The only file that knows both parent and worker. It decides nothing that outlives the start.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import TLS, Limits, Settings, UnixAddress, parse_address
from .core.roster import Finish
from .errors import BindError, ConfigError, ExitCode, PreforkError
from .events import BacklogCapped, Listening, Stopped
from .observe.logs import configure
from .parent.supervisor import Supervisor
from .system.sockets import bind_sockets, bind_unix_socket, describe, unlink_unix_socket

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
        sys.stderr.write(f"prefork: {exc}\n")
        code = exc.exit_code
    raise SystemExit(int(code))


def run(settings: Settings, target: object) -> ExitCode:
    """Serve until stopped. Returns the exit status, in the supervisor and in every worker that was forked meanwhile.

    Raises PreforkError, in the supervisor alone, for what its user has to read in one line.
    """
    validate(settings)
    from .system import forksafety
    from .system.cpus import cpu_count

    forksafety.refuse_unsafe_fork("prefork.serve", stacklevel=3)
    emit = configure(settings.log_format, settings.log_level)
    context = _context(settings)
    count = settings.workers or cpu_count()
    _set_title(target)
    with _listeners(settings) as listeners:
        for sock in listeners:
            emit(Listening(describe(sock), _kind(sock, context)))
        _check_backlog(settings, emit)
        announcer = _Announcer(settings.ready_fd)
        with Supervisor(count, settings.drain_timeout, emit, announcer.announce) as supervisor:
            outcome = supervisor.run()
        if isinstance(outcome, Finish):
            emit(Stopped(outcome.code))
            if outcome.reason:
                raise _failure(outcome)
            return outcome.code
        # From here on this is a worker. Nothing of the supervisor's is left but what is handed over.
        announcer.close()
        from .worker import main as worker

        return worker.run(
            worker.Equipment(
                slot=outcome.slot,
                parent=outcome.parent,
                status=outcome.status.fileno(),
                lifeline=outcome.lifeline,
                sockets=listeners,
                context=context,
                settings=settings,
                target=target,
                emit=configure(settings.log_format, settings.log_level, worker=outcome.slot),
            )
        )


def check(settings: Settings, target: object) -> str:
    """Import the service, read the certificates, validate every option; bind nothing. What was found, in one line.

    Raises PreforkError.
    """
    validate(settings)
    _context(settings)
    from .net.handlers import classify
    from .worker.service import load

    handler = classify(load(target) if isinstance(target, str) else target)
    return f"{target} is a {handler.kind.value}"


def validate(settings: Settings) -> None:
    """What can be known to be wrong before anything is done. Raises ConfigError."""
    if settings.loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        raise ConfigError("--loop uvloop: uvloop is not installed (pip install 'prefork[uvloop]')")
    if settings.ready_fd is not None:
        try:
            os.fstat(settings.ready_fd)
        except OSError as exc:
            reason = os.strerror(exc.errno or 0).lower()
            raise ConfigError(f"--ready-fd {settings.ready_fd}: {reason} (the parent has to pass it on)") from exc


def _context(settings: Settings) -> ssl.SSLContext | None:
    """Made before the fork: the keys of session tickets live in it, and every worker inherits the same."""
    if not settings.tls:
        return None
    from .system.contexts import build_context

    return build_context(settings.tls)


@contextlib.contextmanager
def _listeners(settings: Settings) -> Iterator[list[socket.socket]]:
    """All sockets, or none. The supervisor removes the files of unix sockets; a worker, whose process ends here too,
    does not."""
    owner = os.getpid()
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        for address in settings.bind:
            if isinstance(address, UnixAddress):
                bound = [bind_unix_socket(address.path, address.mode, settings.backlog)]
                stack.callback(_unlink, address.path, owner, _inode(address.path))
            else:
                try:
                    bound = bind_sockets(address.port, address.host, backlog=settings.backlog)
                except socket.gaierror as exc:
                    cure = "not a name or address of this machine"
                    raise BindError(str(address), 0, f"{exc.strerror or exc}; {cure}") from exc
            for sock in bound:
                stack.callback(sock.close)
            sockets += bound
        yield sockets


def _inode(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _unlink(path: str, owner: int, inode: tuple[int, int]) -> None:
    if os.getpid() == owner:
        unlink_unix_socket(path, inode)


def _kind(sock: socket.socket, context: ssl.SSLContext | None) -> str:
    kind = "unix" if sock.family == socket.AF_UNIX else "tcp"
    return kind if context is None else f"{kind}, tls"


def _check_backlog(settings: Settings, emit: Any) -> None:
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
