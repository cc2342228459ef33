"""A worker from fork to exit: its signals, its loop, its service, its server, and its drain.

One process, one loop. What a connection does is in `net/`; when workers are forked is decided in `core/roster.py`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import faulthandler
import os
import random
import signal
import socket
import sys
import time

from .. import metrics
from ..config import option_of
from ..core.messages import (
    LimitTooLowMessage,
    Message,
    ReadyMessage,
    RecycleMessage,
    StoppedAcceptingMessage,
    UnableMessage,
    encode,
)
from ..core.proxy_trust import proxy_policy
from ..core.recycling import RecycleLimits
from ..core.time_limits import service_start_timeout, worker_exit_timeout
from ..errors import ExitCode, ListenerError, PreforkError, place_of, reason_of
from ..events import Drained, Emit, ServiceHandlesSigterm, WorkerFailed
from ..net.base_server import BaseServer
from ..net.connection import handler_failed
from ..net.handlers import Handler
from ..net.outgoing import configure_outgoing
from ..system.credentials import drop_privileges
from ..system.parent_death import die_with_parent, open_parent
from ..system.processes import System, set_title
from ..system.scoreboard import FleetSetting, WorkerStat, fence
from ..system.signals import ignore_without_inheriting, unblock_signals
from ..system.worker_info import set_worker
from ..text import escape_ascii
from . import lease, lifespan, process_group
from .console import Console
from .context import WorkerContext
from .dispatch import Dispatcher
from .exit import exit_deadline, run_until_complete_bounded
from .fleet_admission import FleetAdmission
from .gauges import publish_gauges
from .heartbeat import INTERVAL, Heartbeat
from .held_back import HeldBackTimer
from .loader import load_handler
from .recycling import RecyclingCheck
from .reuseport import ReuseportSockets
from .stop_orders import StopOrders
from .tls_renewal import TLSRenewal

#: Connections accepted from one queue before a stop; otherwise a stream of new ones would delay it without end.
MAX_WAITING = 4096


def run(context: WorkerContext) -> int:
    """Serve until asked to stop, and return the exit status. A failure of the service is reported, and not raised.

    Raises OSError if the kernel refuses what a worker needs before it loads the service.
    """
    fork = context.fork
    # The exit handlers that came with the fork are run by the parent, once.
    atexit._clear()
    set_worker(fork.slot, fork.generation)
    # A terminal sends Ctrl-C, and its own end, to the whole foreground group, to which this process belongs until it
    # leads its own. The supervisor gets them too, and decides.
    ignore_without_inheriting((signal.SIGINT, signal.SIGHUP))
    signal.signal(signal.SIGUSR1, lambda *_: context.reopen_logs())
    metrics.attach(context.row.service_metrics())
    lease.set_channel(fork.channel)
    process_group.become_leader()
    console = [] if fork.console is None else [fork.console]
    process_group.contain_children([*context.config.sockets(), fork.status, fork.tether, fork.channel, *console])
    failure = confine(context)
    if failure is not None:
        return failure
    unblock_signals()
    set_title(f"worker {fork.slot}")
    return _load_and_serve(context)


def confine(context: WorkerContext) -> ExitCode | None:
    """Become the user of the workers, and end with the supervisor from now on. Return an exit code if that fails."""
    fork = context.fork
    try:
        _drop_privileges(context)
    except (OSError, RuntimeError) as exc:
        reason = reason_of(exc) if isinstance(exc, OSError) else str(exc).lower()
        cure = "it takes root, with CAP_SETUID and CAP_SETGID"
        send(context, UnableMessage(f"--user, --group: this process cannot become that user: {reason} ({cure})"))
        return ExitCode.USAGE
    # By the kernel, so that the supervisor's death ends also a worker whose loop hangs. After the change of user, which
    # clears it (prctl(2), PR_SET_PDEATHSIG).
    die_with_parent(fork.parent, signal.SIGKILL)
    fork.tether.arm()
    # In C, so that it answers also when Python does not.
    faulthandler.register(fork.signals.dump, file=fork.status.fileno(), all_threads=True)
    return None


def _drop_privileges(context: WorkerContext) -> None:
    if context.config.settings.umask is not None:
        os.umask(context.config.settings.umask)
    if context.config.identity is not None:
        drop_privileges(context.config.identity)


def _load_and_serve(context: WorkerContext) -> int:
    settings = context.config.settings
    start_by = time.monotonic() + service_start_timeout(settings.boot_timeout)
    try:
        handler = load_handler(context.target, settings)
        loop = _make_loop(settings.loop)
        return run_until_complete_bounded(loop, _serve(context, handler, start_by), context.emit)
    except PreforkError as exc:
        if settings.traceback and exc.__cause__ is not None:
            _report(context.emit, "the service cannot start", exc.__cause__)
        send(context, UnableMessage(str(exc)))
        return exc.exit_code
    except SystemExit as exc:
        # Raised by the service outside of any handler: it wants this process to end.
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except (OSError, MemoryError) as exc:
        # prefork's own: those of the service have become a ServiceError, or a handler's failure. A loop that was only
        # half made would print a traceback when it is collected.
        sys.unraisablehook = lambda _: None
        send(context, UnableMessage(f"{reason_of(exc)} (in {place_of(exc)})"))
        return ExitCode.SERVICE
    except BaseException as exc:
        _report(context.emit, "worker failed", exc)
        return ExitCode.BUG
    finally:
        exit_deadline(worker_exit_timeout(settings.stop_timeout))


async def _serve(context: WorkerContext, handler: Handler, start_by: float) -> int:
    loop = asyncio.get_running_loop()
    settings, scoreboard = context.config.settings, context.fork.scoreboard
    orders = StopOrders(loop, scoreboard, context.fork.row, context.fork.signals.drain, settings.drain_timeout)
    _die_with_supervisor(loop, context)
    context.row[WorkerStat.GENERATION] = context.fork.generation
    refuses = settings.limits.at_limit == "refuse"
    admission = FleetAdmission(scoreboard, context.row, loop, refuses, context.fork.inboxes)
    configure_outgoing(loop, settings.limits, context.emit)
    started = await lifespan.start_service(handler, orders.ordered, context.target, settings, start_by)
    if started is None:
        return ExitCode.OK
    server = BaseServer(
        started,
        limits=settings.limits,
        admission=admission,
        emit=context.emit,
        ssl_context=None if context.config.tls is None else context.config.tls.main,
        account=context.row.account(),
        proxies=proxy_policy(settings.proxy_protocol, settings.proxy_from),
    )
    sockets = ReuseportSockets(
        loop, server, context.config.endpoints(), context.fork.slot, lambda: scoreboard.settings[FleetSetting.SLOTS]
    )
    dispatcher = Dispatcher(
        loop,
        context.fork.inboxes,
        context.fork.slot,
        admission,
        serve=server.adopt,
        back_off=server.back_off,
        queue=server.queue_length,
        emit=context.emit,
    )
    server.offer = dispatcher.offer
    access_log = None if context.make_access_log is None else context.make_access_log(loop)
    server.observers.on_ended = access_log
    HeldBackTimer(loop, context.held_back)
    heartbeat = Heartbeat(
        loop, context.row, min(INTERVAL, settings.hang_timeout / 8), lambda: publish_gauges(context.row, server)
    )
    recycling = _check_recycling(loop, context)
    assert context.fork.console is not None
    renewal = TLSRenewal(context.config.tls, context.emit)
    console = Console(loop, context.fork.console, server, context.emit, renewal.take)
    send(context, ReadyMessage())
    told = _warn_of_handler(context, orders)
    serving = asyncio.ensure_future(server.serve_forever())
    stopping = asyncio.ensure_future(orders.ordered.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if recycling is not None:
        recycling.stop()
    if not told:
        _warn_of_handler(context, orders)
    lease.end_leases()
    _stop_accepting(server, sockets, dispatcher, context)
    connections = server.connections
    aborted = await server.drain_bounded(orders.timeout(), orders.hurries)
    if access_log is not None:
        access_log.close()
    _report_drained(context, connections - aborted, aborted)
    # Stop the heartbeat, because shutdown code may block: `exit_deadline` bounds it from here.
    heartbeat.stop()
    console.close()
    exit_deadline(worker_exit_timeout(settings.stop_timeout))
    failure = await lifespan.stop_service(started, settings.stop_timeout)
    # Its time is over: what follows has no need of what is left of it.
    exit_deadline(worker_exit_timeout(0))
    if failure is not None:
        _report(context.emit, "stop() failed", failure)
    try:
        await serving
    except ListenerError:
        # Reported already. The supervisor still has the socket, and will see whether another worker can use it.
        return ExitCode.BIND
    return ExitCode.OK


def _warn_of_handler(context: WorkerContext, orders: StopOrders) -> bool:
    """Warn of the service's own handler for SIGTERM, if there is one, in one worker of the fleet. Return whether."""
    handler = orders.foreign_handler()
    if handler and context.fork.slot == 0:
        context.emit(ServiceHandlesSigterm(escape_ascii(handler)))
    return bool(handler)


def _die_with_supervisor(loop: asyncio.AbstractEventLoop, context: WorkerContext) -> None:
    """End this process group when the supervisor is gone: nothing would replace the worker, and a successor of the
    supervisor needs the port."""
    supervisor = open_parent(context.fork.parent)
    if supervisor is not None:
        loop.add_reader(supervisor, System().kill_own_group)
        return

    def check() -> None:
        if context.fork.lifeline.broken():
            System().kill_own_group()

    loop.add_reader(context.fork.lifeline.fileno(), check)


def _check_recycling(loop: asyncio.AbstractEventLoop, context: WorkerContext) -> RecyclingCheck | None:
    settings = context.config.settings
    limits = RecycleLimits(settings.max_connections_served, settings.max_worker_age, settings.max_worker_rss)
    if not limits:
        return None
    own = limits.with_jitter(random.random())
    return RecyclingCheck(
        loop,
        context.row,
        own,
        on_limit=lambda reason: send(context, RecycleMessage(reason)),
        on_too_low=lambda rss, limit: send(context, LimitTooLowMessage(rss, limit)),
    )


def _stop_accepting(
    server: BaseServer, sockets: ReuseportSockets, dispatcher: Dispatcher, context: WorkerContext
) -> None:
    """Accept for the last time, then close the listening sockets.

    A worker that is replaced leaves the accept queues to its siblings. When the whole server stops, each worker first
    empties the queues, because nothing would accept those connections later. The last worker also shuts the sockets
    down: the supervisor, or a child that a handler has forked, may still hold them. Until a socket is shut down, or the
    last process closes it, the kernel lets clients connect and wait in vain.
    """
    sockets.stop()
    server.offer = None
    scoreboard = context.fork.scoreboard
    stopping = bool(scoreboard.settings[FleetSetting.STOPPING])
    if stopping:
        sockets.accept_from_all()
        server.accept_waiting(MAX_WAITING)
    context.row[WorkerStat.STOPPED] = 1
    fence()
    dispatcher.stop()
    # Another supervisor may have the same sockets; it goes on serving.
    shared = bool(scoreboard.settings[FleetSetting.LISTENERS_SHARED])
    if stopping and scoreboard.all_stopped(context.row):
        dispatcher.empty_all()
    if stopping and not shared and scoreboard.all_stopped(context.row):
        bound_here = set(context.config.bound_sockets())
        # One socket at a time: a connection that arrives between its last accept and its shutdown is reset.
        for sock in context.config.sockets():
            server.accept_waiting(MAX_WAITING, sock)
            if sock in bound_here:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
    server.close()
    for sock in context.config.sockets():
        sock.close()
    send(context, StoppedAcceptingMessage())


def _report_drained(context: WorkerContext, closed: int, aborted: int) -> None:
    """Log how the connections of this worker ended."""
    stopping = bool(context.fork.scoreboard.settings[FleetSetting.STOPPING])
    replaced = not stopping and context.config.settings.reload_drain_timeout is not None
    context.emit(Drained(closed, aborted, option_of("reload_drain_timeout" if replaced else "drain_timeout")))


def send(context: WorkerContext, message: Message) -> None:
    """Send a message to the supervisor."""
    # The supervisor may be gone; then this process ends anyway.
    with contextlib.suppress(OSError):
        os.write(context.fork.status.fileno(), encode(message))


def _report(emit: Emit, what: str, exc: BaseException) -> None:
    failed = handler_failed("", exc)
    emit(WorkerFailed(what, failed.error, failed.traceback))


def _make_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "asyncio":
        return asyncio.new_event_loop()
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
