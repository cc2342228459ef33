"""Putting the parts together: settings and a service become sockets, a supervisor, and workers.

The only floor that knows both parent and worker. It decides nothing that outlives the start.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from ..addresses import parse_address
from ..config import TLS, Limits, Settings
from ..core.facts import Finish
from ..core.messages import UnableMessage, encode
from ..errors import ExitCode, PreforkError, ServiceError, place_of, reason_of
from ..events import Emit, Stopped, escape_controls
from ..observe.logs import configure
from ..observe.manager import notify_systemd
from ..parent.control_server import ControlSocket
from ..parent.supervisor import Supervisor
from ..parent.upgrade import Predecessor
from ..parent.workers import ForkContext
from ..system import handover, paths
from ..system.descriptors import raise_limit
from ..system.notify import Notifier
from ..system.processes import System
from ..system.signals import startup_signals

# Imported before the fork, although only workers run it: a replacement is there sooner, its memory is shared, and it is
# of its supervisor's version, also when prefork has been upgraded on disk meanwhile.
from ..worker import exit as worker_exit
from ..worker import main as worker
from .preflight import check as check
from .resources import GenerationConfig, ServerResources, validate
from .sources import Fixed, Source

#: Characters of one line of an error.
LINE_LIMIT = 2000
#: What the supervisor heeds when it runs, and what means nothing while it starts.
PASSES = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)


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

    `target` is the service itself, or the text that names it, which a reload reads anew: a function is what it was when
    this program was started, until an upgrade starts the program again. `bind` is an address or several; the other
    options are the fields of `config.Settings`, which are the command's with `_`; those of one connection, and of all,
    are in `limits`. Call it in the main thread of a program that has started no event loop: it forks. A failure is told
    in one line on standard error.

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
        code = run(Fixed(settings), target)
    except PreforkError as exc:
        sys.stderr.write("".join(f"prefork: {escape_controls(line, LINE_LIMIT)}\n" for line in exc.lines()))
        code = exc.exit_code
    raise SystemExit(int(code))


def run(source: Source, target: object) -> ExitCode:
    """Serve until stopped. Returns the exit status, in the supervisor alone: a worker ends in here.

    `source` is asked again at each reload. Raises PreforkError for what the user has to read in
    one line. Afterwards SIGTERM, SIGINT and SIGQUIT are ignored: the process is at its end.
    """
    handed = handover.load()
    predecessor = None
    try:
        if handed is not None:
            predecessor = Predecessor(handed.pid, handed.channel)
            paths.set_base_directory(handed.state.home)
            if handed.state.config is not None:
                source.keep_to(handed.state.config)
        return _run(source, target, handed, predecessor)
    except PreforkError as exc:
        failure = exc
    except (OSError, MemoryError) as exc:
        # The supervisor survives these once a worker has been ready: it was the start that failed.
        failure = ServiceError(f"the server cannot start: {reason_of(exc)} (in {place_of(exc)})")
    if predecessor is not None:
        predecessor.tell(UnableMessage(str(failure)))
    raise failure from None


def _run(
    source: Source,
    target: object,
    handed: handover.Handover | None,
    predecessor: Predecessor | None,
) -> ExitCode:
    with startup_signals(ends=(signal.SIGTERM, signal.SIGQUIT), passes=PASSES):
        return _serve(source.settings(), source, target, handed, predecessor)


def _serve(
    settings: Settings,
    source: Source,
    target: object,
    handed: handover.Handover | None,
    predecessor: Predecessor | None,
) -> ExitCode:
    from ..system import forksafety

    validate(settings, starting=handed is None)
    known = () if predecessor is None else (predecessor.fileno(),)
    forksafety.refuse_unsafe_fork("prefork.serve", stacklevel=6, known=known)
    notifier = Notifier()
    emit = notify_systemd(configure(settings.log_format, settings.log_level), notifier)
    _set_title(target)
    raise_limit()
    estate = None if handed is None else handed.state
    with contextlib.closing(ServerResources(settings, source, estate, notifier)) as provision:
        outcome = _supervise(provision, target, emit, notifier, predecessor)
    emit(Stopped(outcome.code))
    if outcome.reason:
        raise _failure(outcome)
    return outcome.code


def _supervise(
    provision: ServerResources, target: object, emit: Emit, notifier: Notifier, predecessor: Predecessor | None
) -> Finish:
    plan = provision.first(emit)
    control = provision.bind_control(emit)
    system = System()
    system.close_in_child(*provision.private())
    # What is there now stays, and is the same in all: a collection in a worker shall not write to every object of it,
    # and so copy the pages that it shares with its parent (gc.freeze).
    gc.collect()
    gc.freeze()
    with Supervisor(
        plan,
        provision,
        emit,
        system,
        control=None if control is None else ControlSocket(control.endpoints[0][0], system.close_in_child),
        watchdog=notifier.watchdog,
        predecessor=predecessor,
        leave_daemons=provision.leave_daemons,
    ) as supervisor:
        outcome = supervisor.run()
        if isinstance(outcome, ForkContext):
            _work(outcome, supervisor.plan_of(outcome).equipment, provision, target)
        # While signals are still held: an impatient second one must not prevent that files are removed.
        provision.close(shared=predecessor is not None and not predecessor.gone)
    return outcome


def _work(seat: ForkContext, kit: object, provision: ServerResources, target: object) -> NoReturn:
    """Be a worker to the end of the process. Whatever goes wrong, the caller's code must not go on in two processes."""
    code: int = ExitCode.BUG
    try:
        assert isinstance(kit, GenerationConfig)
        provision.keep_in_worker(kit)
        settings = kit.settings
        emit = configure(settings.log_format, settings.log_level, worker=seat.slot)
        code = worker.run(
            worker.WorkerContext(
                slot=seat.slot,
                generation=seat.generation,
                parent=seat.parent,
                status=seat.status.fileno(),
                lifeline=seat.lifeline,
                tether=seat.tether,
                scoreboard=seat.scoreboard,
                row=seat.scoreboard.become_writer(seat.row),
                dump_signal=seat.dump_signal,
                identity=kit.identity,
                endpoints=[lanes for listener in kit.listeners for lanes in listener.endpoints],
                passed=frozenset(sock for each in kit.listeners if each.passed for sock in each.sockets()),
                context=kit.context,
                settings=settings,
                target=target,
                emit=emit,
                reopen_logs=functools.partial(provision.log_files.reopen, emit),
            )
        )
    except (OSError, MemoryError) as exc:
        code = ExitCode.SERVICE
        _tell_why(seat, exc)
    except BaseException:
        traceback.print_exc()
    finally:
        worker_exit.leave(code)


def _tell_why(seat: ForkContext, exc: OSError | MemoryError) -> None:
    """It cannot be a worker; whether another one can, the supervisor will see."""
    with contextlib.suppress(OSError):
        os.write(seat.status.fileno(), encode(UnableMessage(f"{reason_of(exc)} (in {place_of(exc)})")))


def _failure(outcome: Finish) -> PreforkError:
    error = PreforkError(outcome.reason)
    error.exit_code = outcome.code
    return error


def _set_title(target: object) -> None:
    with contextlib.suppress(ImportError):
        import setproctitle

        name = target if isinstance(target, str) else getattr(target, "__qualname__", type(target).__qualname__)
        setproctitle.setproctitle(f"prefork: supervisor [{name}]")
