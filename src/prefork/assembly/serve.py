"""Serve: put settings, resources, supervisor and service together, and run them until the server is stopped.

What workers share is in `resources.py`, what a forked worker does in `worker_entry.py`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Unpack

from ..checks import reject
from ..config import ServeOptions, settings_of
from ..core.facts import Finish
from ..core.messages import UnableMessage
from ..errors import ConfigError, ExitCode, PreforkError, ServiceError, place_of, reason_of
from ..events import Emit, Stopped, VariableUnknown
from ..observe.logs import EventLog, configure
from ..observe.manager import notify_systemd
from ..observe.title import title_of_stops
from ..parent.control_server import ControlSocket
from ..parent.supervisor import Supervisor
from ..parent.upgrade import Predecessor
from ..program import ReadyKind, ReadyWhen
from ..system import handover, paths
from ..system.descriptors import raise_limit
from ..system.fork_context import ForkContext
from ..system.notify import Notifier
from ..system.processes import System, set_title
from ..system.signals import startup_signals
from ..text import escape_controls
from ..worker.context import GenerationConfig
from ..worker.loader import target_name
from .resources import ServerResources
from .settings_source import FixedSettings, SettingsSource, locating
from .validation import validate
from .watching import code_directories, watched_sources
from .worker_entry import preload, run_worker

if TYPE_CHECKING:
    from ..net.handlers import Service

#: Characters of one line of an error.
LINE_LIMIT = 2000
#: Signals that the supervisor handles once it runs; ignored before, because their default action ends the process.
IGNORED_AT_START = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)


def serve(target: Service | str, **options: Unpack[ServeOptions]) -> None:
    """Serve `target` as `prefork serve TARGET` does, then raise SystemExit with the command's exit code.

    `target` is the service itself, as `TCPServer` takes it, or the text that names it. A reload imports a named service
    again; an object stays what it was until an upgrade starts the program again. The options are those of the command,
    with `_` for `-` (see `ServeOptions`). Variables `PREFORK_*` and files are not read. `limits=prefork.Limits(...)`
    holds the limits of one connection and of all together.

    Call it in the main thread of a program that has started no event loop, because it forks. A failure is printed in
    one line on standard error. The caller's `finally` blocks and exit handlers run once, in the supervisor: a worker
    never returns from this function.
    """
    try:
        settings = settings_of(options)
        if settings.reload and not isinstance(target, str):
            raise ConfigError("--reload: an object is not imported again: pass its name, such as 'echo:handle'")
        code = run(FixedSettings(settings), target)
    except PreforkError as exc:
        sys.stderr.write("".join(f"prefork: {escape_controls(line, LINE_LIMIT)}\n" for line in exc.lines()))
        code = exc.exit_code
    raise SystemExit(int(code))


def run(source: SettingsSource, target: object) -> ExitCode:
    """Serve until stopped, and return the exit status. Returns in the supervisor only: a worker's process ends in here.

    Raises PreforkError, whose message is one line for the user. Afterwards SIGTERM, SIGINT and SIGQUIT are ignored,
    because the process is about to end.
    """
    handed = handover.load()
    predecessor = None
    try:
        if handed is not None:
            predecessor = Predecessor(handed.pid, handed.channel)
            paths.set_base_directory(handed.state.home)
            if handed.state.config is not None:
                source.pin_file(handed.state.config)
        with startup_signals(ends=(signal.SIGTERM, signal.SIGQUIT), passes=IGNORED_AT_START), locating(source):
            return _serve(source, target, handed, predecessor)
    except PreforkError as exc:
        failure = exc
    except (OSError, MemoryError) as exc:
        # Once a worker has been ready the supervisor survives these, so it was the start that failed.
        failure = ServiceError(f"the server cannot start: {reason_of(exc)} (in {place_of(exc)})")
    if predecessor is not None:
        predecessor.send(UnableMessage(str(failure)))
    raise failure from None


def _serve(
    source: SettingsSource, target: object, handed: handover.Handover | None, predecessor: Predecessor | None
) -> ExitCode:
    from ..system import forksafety

    settings = source.settings()
    validate(settings, starting=handed is None)
    _keep_free(settings.ready)
    known = () if predecessor is None else (predecessor.fileno(),)
    forksafety.refuse_unsafe_fork("prefork.serve", stacklevel=5, known=known)
    notifier = Notifier()
    log = configure(settings.log_format, settings.log_level, unlimited=settings.reload)
    title = f"supervisor [{target_name(target) if settings.program is None else settings.program}]"
    emit = title_of_stops(notify_systemd(log, notifier), set_title, title)
    for variable in source.unknown_variables:
        emit(VariableUnknown(*variable))
    set_title(title)
    raise_limit()
    preload(settings)
    inherited = None if handed is None else handed.state
    with contextlib.closing(ServerResources(settings, source, inherited, notifier, emit)) as resources:
        outcome = _supervise(resources, source, target, emit, log, notifier, predecessor)
    log.flush(everything=True)
    emit(Stopped(outcome.code))
    if outcome.reason:
        failure = PreforkError(outcome.reason)
        failure.exit_code = outcome.code
        raise failure
    return outcome.code


def _keep_free(ready: ReadyWhen) -> None:
    """Keep the descriptor of `--ready fd:N` free, so that each worker can have it. Raises ConfigError."""
    if ready.kind is not ReadyKind.DESCRIPTOR:
        return
    number = int(ready.number)
    try:
        os.fstat(number)
    except OSError:
        empty = os.open(os.devnull, os.O_RDONLY)
        if empty == number:
            # It was the lowest free one, as fd:3 often is; dup2(2) refuses to make it itself.
            return
        try:
            os.dup2(empty, number, inheritable=False)
        except OSError as exc:
            reject("--ready", str(ready), reason_of(exc))
        finally:
            os.close(empty)
        return
    reject("--ready", str(ready), "the descriptor is in use; choose another number")


def _describe_target(config: GenerationConfig, target: object) -> str:
    program = config.settings.program
    return escape_controls(target_name(target) if program is None else str(program))


def _supervise(
    resources: ServerResources,
    source: SettingsSource,
    target: object,
    emit: Emit,
    log: EventLog,
    notifier: Notifier,
    predecessor: Predecessor | None,
) -> Finish:
    spec = resources.build_first()
    control = resources.bind_control()
    exporter = resources.bind_exporter()
    system = System()
    system.close_in_child(*resources.to_close_in_child())
    # A collection in a worker would write to every object made so far, and so copy the pages that it shares with its
    # parent: gc.freeze keeps them out of it.
    gc.collect()
    gc.freeze()
    with Supervisor(
        spec,
        resources,
        emit,
        system,
        control=None if control is None else ControlSocket(control.endpoints[0][0], system.close_in_child),
        watchdog=notifier.watchdog,
        predecessor=predecessor,
        leave_daemons=spec.config.settings.leave_daemons,
        watched=watched_sources(spec.config, code_directories(target), source.file),
        held_back=log,
        exporter=exporter,
        about={"target": _describe_target(spec.config, target), "config": source.file or None},
        suspended=resources.was_suspended,
    ) as supervisor:
        outcome = supervisor.run()
        if isinstance(outcome, ForkContext):
            run_worker(outcome, supervisor.spec_of(outcome).config, resources, target)
        # While signals are still blocked; otherwise a second one could end the process before files are removed.
        resources.close(shared=predecessor is not None and predecessor.shares_sockets)
    return outcome
