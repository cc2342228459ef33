"""A worker from fork to exit: its signals, its loop, its service, its server, and its drain.

One process, one loop. What a connection does is in `net`; who forked this and why is the supervisor's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import random
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from ..config import Settings
from ..core.messages import DrainingMessage, Message, ReadyMessage, RecycleMessage, UnableMessage, encode
from ..core.recycling import RecycleLimits
from ..errors import ExitCode, ListenerFailed, PreforkError, ServiceError, place_of, reason_of
from ..events import Drained, Emit, WorkerFailed
from ..net.connection import handler_failed
from ..net.handlers import Handler, classify
from ..net.server import TCPServer
from ..system.credentials import Identity, drop_privileges
from ..system.descriptors import Descriptor
from ..system.parent_death import Lifeline, die_with_parent, open_parent
from ..system.processes import System
from ..system.scoreboard import FleetSetting, Row, Scoreboard, WorkerStat, fence
from ..system.signals import ignore_without_inheriting, unblock_signals
from ..system.tether import Tether
from ..system.worker_info import set_worker
from . import process_group
from .exit import drop_inherited_atexit, exit_deadline, run_until_complete_bounded
from .fleet_admission import FleetAdmission
from .heartbeat import INTERVAL, Heartbeat
from .loader import explain, load
from .recycling import RecyclingCheck
from .reuseport import Lanes

#: Seconds that a lifespan object's `start()` and `stop()` may take.
START_TIMEOUT = 60.0
STOP_TIMEOUT = 3.0
#: Seconds from the end of the drain to the end of the process: `stop()`, then stuck tasks, threads and exit handlers.
END_TIMEOUT = STOP_TIMEOUT + 3.0
#: Connections accepted from a queue before a stop: those that go on coming must not hold it up.
MAX_WAITING = 4096


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker is given by whoever forked it."""

    slot: int
    generation: int
    parent: int
    status: int
    """The descriptor of the status pipe."""
    lifeline: Lifeline
    tether: Tether
    scoreboard: Scoreboard
    row: Row
    """Ours on it."""
    dump_signal: int
    """What asks for the stacks of all threads, to be written to the status pipe."""
    identity: Identity | None
    """Whom to become; None: nobody else."""
    endpoints: Sequence[Sequence[socket.socket]]
    """What to accept from: for each endpoint one socket, or one for each worker (--reuse-port)."""
    passed: Collection[socket.socket]
    """Those of them that belong to another program, which has passed them on."""
    context: ssl.SSLContext | None
    settings: Settings
    target: object
    emit: Emit
    reopen_logs: Callable[[], object]


def run(equipment: WorkerContext) -> int:
    """Serve until asked to stop; the exit status. Raises nothing: what the service lets out is reported here."""
    drop_inherited_atexit()
    set_worker(equipment.slot, equipment.generation)
    # A terminal tells its whole group of Ctrl-C, and of its own end: the supervisor has heard it, too, and it is its to
    # answer.
    ignore_without_inheriting((signal.SIGINT, signal.SIGHUP))
    signal.signal(signal.SIGUSR1, lambda *_: equipment.reopen_logs())
    process_group.lead()
    process_group.guard_children([*_sockets(equipment), Descriptor(equipment.status), equipment.tether])
    try:
        _drop_privileges(equipment)
    except (OSError, RuntimeError) as exc:
        wanted = "--user, --group: this process cannot become that user"
        reason = (exc.strerror or "") if isinstance(exc, OSError) else str(exc)
        _tell(equipment, UnableMessage(f"{wanted}: {reason.lower()} (it takes root, with CAP_SETUID and CAP_SETGID)"))
        return ExitCode.USAGE
    # The kernel's answer to the supervisor's death holds from the first moment and in a loop that hangs.
    die_with_parent(equipment.parent, signal.SIGKILL)
    equipment.tether.arm()
    # In C, so it answers also when Python does not.
    faulthandler.register(equipment.dump_signal, file=equipment.status, all_threads=True)
    unblock_signals()
    _set_title(equipment.slot)
    try:
        handler = classify(load(equipment.target) if isinstance(equipment.target, str) else equipment.target)
        return run_until_complete_bounded(
            _make_loop(equipment.settings.loop), _serve(equipment, handler), equipment.emit
        )
    except PreforkError as exc:
        _tell(equipment, UnableMessage(str(exc)))
        return exc.exit_code
    except SystemExit as exc:
        # Called by the service outside of any handler: it wants this process to end.
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except (OSError, MemoryError) as exc:
        # The service's own have become a ServiceError, or a handler's failure. A loop that was half made would complain
        # of itself in a traceback when it goes.
        sys.unraisablehook = lambda _: None
        _tell(equipment, UnableMessage(f"{reason_of(exc)} (in {place_of(exc)})"))
        return ExitCode.SERVICE
    except BaseException as exc:
        _report("worker failed", exc, equipment.emit)
        return ExitCode.BUG
    finally:
        exit_deadline(END_TIMEOUT)


def _drop_privileges(equipment: WorkerContext) -> None:
    """Before a line of the service is read."""
    if equipment.settings.umask is not None:
        os.umask(equipment.settings.umask)
    if equipment.identity is not None:
        drop_privileges(equipment.identity)


def _stop_at_signal(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    try:
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    except RuntimeError as exc:
        # asyncio makes one of a system call that fails: it is to be told as what it is.
        raise exc.__context__ if isinstance(exc.__context__, OSError) else exc from None


async def _serve(equipment: WorkerContext, handler: Handler) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    _stop_at_signal(loop, stop)
    _end_with_supervisor(loop, equipment)
    limits = equipment.settings.limits
    gate = FleetAdmission(equipment.scoreboard, equipment.row, loop, limits.at_limit == "refuse")
    server = TCPServer(handler, tls=equipment.context, limits=limits, emit=equipment.emit, gate=gate)
    if not await _start(handler, stop, equipment.target):
        return ExitCode.OK
    notices = equipment.scoreboard.settings
    lanes = Lanes(loop, server, equipment.endpoints, equipment.slot, lambda: notices[FleetSetting.SLOTS])
    interval = min(INTERVAL, equipment.settings.hang_timeout / 8)
    heartbeat = Heartbeat(loop, equipment.row, interval)
    ageing = _age(loop, equipment)
    _tell(equipment, ReadyMessage())
    forever = asyncio.ensure_future(server.serve_forever())
    asked = asyncio.ensure_future(stop.wait())
    await asyncio.wait({forever, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if ageing is not None:
        ageing.stop()
    _stop_accepting(server, lanes, equipment)
    aborted = await server.drain(equipment.settings.drain_timeout)
    equipment.emit(Drained(aborted))
    # From here on `exit_deadline` is the judge: code that ends a process may block.
    heartbeat.stop()
    exit_deadline(END_TIMEOUT)
    await _stop(handler, equipment.emit)
    try:
        await forever
    except ListenerFailed:
        # Reported already. The supervisor holds the socket and will see whether another worker fares better.
        return ExitCode.BIND
    return ExitCode.OK


def _end_with_supervisor(loop: asyncio.AbstractEventLoop, equipment: WorkerContext) -> None:
    """Nothing would replace us once it is gone, and a successor wants the port."""
    supervisor = open_parent(equipment.parent)
    if supervisor is not None:
        loop.add_reader(supervisor, System().kill_own_group)
        return

    def look() -> None:
        if equipment.lifeline.broken():
            System().kill_own_group()

    loop.add_reader(equipment.lifeline.fileno(), look)


async def _start(handler: Handler, stop: asyncio.Event, target: object) -> bool:
    """A lifespan object's start; False if we were asked to stop meanwhile. Raises ServiceError when it fails."""
    starting = asyncio.ensure_future(handler.start())
    asked = asyncio.ensure_future(stop.wait())
    await asyncio.wait({starting, asked}, timeout=START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    name = target if isinstance(target, str) else type(target).__qualname__
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting}, timeout=STOP_TIMEOUT)
        if stop.is_set():
            return False
        raise ServiceError(f"service {name}: start() has not returned after {START_TIMEOUT:.0f} s")
    exc = asyncio.CancelledError("by itself") if starting.cancelled() else starting.exception()
    if exc is not None:
        raise ServiceError(f"service {name}: start() raised {explain(exc)}") from exc
    return True


async def _stop(handler: Handler, emit: Emit) -> None:
    # Not wait_for, which waits for the end of what it cancelled, however long that takes.
    stopping = asyncio.ensure_future(handler.stop())
    await asyncio.wait({stopping}, timeout=STOP_TIMEOUT)
    if not stopping.done():
        stopping.cancel()
        exc: BaseException | None = TimeoutError(f"it has not returned after {STOP_TIMEOUT:.0f} s")
    else:
        exc = asyncio.CancelledError("by itself") if stopping.cancelled() else stopping.exception()
    if exc is not None:
        _report("stop() failed", exc, emit)


def _report(what: str, exc: BaseException, emit: Emit) -> None:
    failed = handler_failed("", exc)
    emit(WorkerFailed(what, failed.error, failed.traceback))


def _stop_accepting(server: TCPServer, lanes: Lanes, equipment: WorkerContext) -> None:
    """Where nobody will accept after us, what the kernel has accepted already is ours. Then give the sockets back: the
    kernel refuses connections when the last process has closed them, and lets them wait in vain before."""
    lanes.stop()
    stopping = bool(equipment.scoreboard.settings[FleetSetting.STOPPING])
    if stopping:
        lanes.take_all()
        server.accept_waiting(MAX_WAITING)
    equipment.row[WorkerStat.STOPPED] = 1
    fence()
    alone = not equipment.scoreboard.settings[FleetSetting.LISTENERS_SHARED]
    if stopping and alone and equipment.scoreboard.all_stopped(equipment.row):
        # Nothing accepts after us. The supervisor has the sockets still, and so may a child that a handler has forked:
        # where they are shut down the kernel refuses connections at once. What came meanwhile is ours. One by one: a
        # connection that comes between the last accept and the end is reset.
        for sock in _sockets(equipment):
            server.accept_waiting(MAX_WAITING, sock)
            if sock not in equipment.passed:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
    server.stop()
    for sock in _sockets(equipment):
        sock.close()
    _tell(equipment, DrainingMessage())


def _sockets(equipment: WorkerContext) -> Iterator[socket.socket]:
    for endpoint in equipment.endpoints:
        yield from endpoint


def _age(loop: asyncio.AbstractEventLoop, equipment: WorkerContext) -> RecyclingCheck | None:
    settings = equipment.settings
    lifetime = RecycleLimits(settings.max_connections_served, settings.max_worker_age, settings.max_worker_rss)
    if not lifetime:
        return None
    drawn = lifetime.drawn(random.random())
    return RecyclingCheck(loop, equipment.row, drawn, lambda reason: _tell(equipment, RecycleMessage(reason)))


def _tell(equipment: WorkerContext, message: Message) -> None:
    # The supervisor may be gone; the lifeline says so.
    with contextlib.suppress(OSError):
        os.write(equipment.status, encode(message))


def _make_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "asyncio":
        return asyncio.new_event_loop()
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _set_title(slot: int) -> None:
    # Found only where the command's dependencies are installed.
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle(f"prefork: worker {slot}")
