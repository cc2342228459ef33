"""A worker from fork to exit: its signals, its loop, its service, its server, and its drain.

One process, one loop. What a connection does is in `net`; who forked this and why is the supervisor's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import Settings
from ..core.messages import Message, ReadyMessage, UnableMessage, encode
from ..errors import ExitCode, ListenerFailed, PreforkError, ServiceError
from ..events import Drained, Emit, TasksStuck, printable
from ..net.connection import handler_failed
from ..net.handlers import Handler, classify
from ..net.server import TCPServer
from ..system.orphans import Lifeline, die_with_parent
from ..system.signals import unblock_signals
from .service import load

#: Seconds that a lifespan object's `stop()` may take.
STOP_TIMEOUT = 3.0
#: Seconds that tasks may take to end when they are cancelled at the end.
CANCEL_TIMEOUT = 0.5


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a worker is given by whoever forked it."""

    slot: int
    parent: int
    status: int
    """The descriptor of the status pipe."""
    lifeline: Lifeline
    sockets: Sequence[socket.socket]
    context: ssl.SSLContext | None
    settings: Settings
    target: object
    emit: Emit


def run(equipment: Equipment) -> ExitCode:
    """Serve until asked to stop; the exit status."""
    # SIGINT from a terminal goes to the whole group: the supervisor has it too, and passes it on as a drain.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    # The kernel's answer to the supervisor's death holds from the first moment and in a loop that hangs.
    die_with_parent(equipment.parent, signal.SIGKILL)
    unblock_signals()
    _set_title(equipment.slot)
    try:
        handler = classify(load(equipment.target) if isinstance(equipment.target, str) else equipment.target)
        return _run(_make_loop(equipment.settings.loop), _serve(equipment, handler), equipment.emit)
    except PreforkError as exc:
        _tell(equipment, UnableMessage(str(exc)))
        return exc.exit_code


def _run(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, ExitCode], emit: Emit) -> ExitCode:
    """What `asyncio.run` does, but it ends: a task that swallows its cancellation would hold `asyncio.run` for ever."""
    asyncio.set_event_loop(loop)
    try:
        code = loop.run_until_complete(main)
    finally:
        stuck = loop.run_until_complete(_cancel_tasks())
    if stuck:
        names = ", ".join(sorted({getattr(task.get_coro(), "__qualname__", "?") for task in stuck}))
        emit(TasksStuck(len(stuck), printable(names)))
        # Not even the interpreter's own end would get past code that refuses to.
        sys.stdout.flush()
        os._exit(code)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    return code


async def _cancel_tasks() -> set[asyncio.Task[Any]]:
    """Cancel all tasks but this one; those that do not end in time."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if not tasks:
        return set()
    _, pending = await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT)
    return pending


async def _serve(equipment: Equipment, handler: Handler) -> ExitCode:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # Its end of file says that the supervisor is gone: nobody would replace us, and a successor wants the port.
    loop.add_reader(equipment.lifeline.fileno(), os._exit, ExitCode.OK)
    server = TCPServer(handler, tls=equipment.context, limits=equipment.settings.limits, emit=equipment.emit)
    if not await _start(handler, stop):
        return ExitCode.OK
    server.add_sockets(equipment.sockets)
    _tell(equipment, ReadyMessage())
    forever = asyncio.ensure_future(server.serve_forever())
    asked = asyncio.ensure_future(stop.wait())
    await asyncio.wait({forever, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    aborted = await server.drain(equipment.settings.drain_timeout)
    equipment.emit(Drained(aborted))
    await _stop(handler, equipment.emit)
    try:
        await forever
    except ListenerFailed:
        # Reported already. The supervisor holds the socket and will see whether another worker fares better.
        return ExitCode.BUG
    return ExitCode.OK


async def _start(handler: Handler, stop: asyncio.Event) -> bool:
    """A lifespan object's start; False if we were asked to stop meanwhile."""
    starting = asyncio.ensure_future(handler.start())
    asked = asyncio.ensure_future(stop.wait())
    await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await asyncio.wait_for(starting, STOP_TIMEOUT)
        return False
    exc = starting.exception()
    if exc is not None:
        text = str(exc).splitlines()
        raise ServiceError(f"start() raised {type(exc).__name__}{': ' + text[0] if text else ''}") from exc
    return True


async def _stop(handler: Handler, emit: Emit) -> None:
    try:
        await asyncio.wait_for(handler.stop(), STOP_TIMEOUT)
    except Exception as exc:
        emit(handler_failed("stop()", exc))


def _tell(equipment: Equipment, message: Message) -> None:
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
