"""`prefork.lease`: what one worker of a server does, and no other at the same time.

The supervisor decides which worker holds a lease (`core/leases.py`). Here is the holder's side: a socket that becomes
readable when the lease is held. Its close gives the lease up, however the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
import weakref
from types import TracebackType
from typing import Self

from ..core.leases import name_error
from ..core.worker_requests import LeaseRequest, Refused
from ..system.worker_channel import WorkerEnd
from ..system.worker_info import current_worker, task_id

_HELD = b"1"

_channel: WorkerEnd | None = None
_entered: weakref.WeakSet[Lease] = weakref.WeakSet()
_draining = threading.Event()


def set_channel(channel: WorkerEnd) -> None:
    """Note, in a worker, how it speaks to its supervisor."""
    global _channel
    _channel = channel


def end_leases() -> None:
    """End the `async with` blocks of this worker's leases, because it drains: its successor is to have them."""
    _draining.set()
    for each in list(_entered):
        each._end()


class Lease:
    """A lease by name, as a context manager: see `lease`."""

    def __init__(self, name: str) -> None:
        failure = name_error(name)
        if failure:
            raise ValueError(failure)
        self.name = name
        self._sock: socket.socket | None = None
        self._task: asyncio.Task[object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = False

    def __repr__(self) -> str:
        return f"<Lease {self.name!r} {'held' if self.held else 'not held'}>"

    @property
    def held(self) -> bool:
        """Whether this worker holds the lease now."""
        return self._sock is not None and _is_held(self._sock)

    @property
    def ending(self) -> bool:
        """Whether this worker drains, so that the lease is to be given up soon."""
        return _draining.is_set()

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for the lease, for up to `timeout` seconds, and return whether it is held. Blocks this thread.

        Raises RuntimeError if it is held or waited for already, and if the supervisor refuses it.
        """
        sock = self._request()
        if sock is None:
            return True
        if not _wait_readable(sock, None if timeout is None else max(0.0, timeout)):
            self.release()
            return False
        self._check()
        return True

    def release(self) -> None:
        """Give the lease up, or stop waiting for it (idempotent). The next worker has it at once."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        sock = self._request()
        if sock is None:
            return self
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(sock, lambda: None if readable.done() else readable.set_result(None))
        try:
            await readable
        except BaseException:
            loop.remove_reader(sock)
            self.release()
            raise
        loop.remove_reader(sock)
        self._check()
        self._task, self._loop, self._ending = asyncio.current_task(), loop, False
        _entered.add(self)
        if _draining.is_set():
            self._end()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        _entered.discard(self)
        self.release()
        task, self._task = self._task, None
        if not self._ending or task is None or kind is None or not issubclass(kind, asyncio.CancelledError):
            return False
        # As asyncio.timeout does: only the cancellation that came from here ends here.
        return task.uncancel() == 0

    def _end(self) -> None:
        """Cancel the block, from any thread."""
        loop, task = self._loop, self._task
        if loop is not None and task is not None:

            def cancel() -> None:
                if self._task is task and not self._ending:
                    self._ending = True
                    task.cancel()

            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(cancel)

    def _request(self) -> socket.socket | None:
        """Ask for the lease; None if this process is no worker, and has no sibling that could hold it."""
        if self._sock is not None:
            raise RuntimeError(f"lease {self.name!r} is held or waited for already: make another object")
        if current_worker() is None:
            if task_id() is not None:
                raise RuntimeError("lease() needs a supervisor: the children of fork_processes have none")
            return None
        if _channel is None or _channel.fileno() < 0:
            raise RuntimeError("lease() works in a worker, not in a process that the worker has forked")
        answer, sock = _channel.ask(LeaseRequest(self.name))
        if sock is None:
            reason = answer.reason if isinstance(answer, Refused) else "the supervisor does not answer"
            raise RuntimeError(f"lease {self.name!r}: {reason}")
        self._sock = sock
        return sock

    def _check(self) -> None:
        """Raise RuntimeError unless the lease is held."""
        if not self.held:
            self.release()
            raise RuntimeError(f"lease {self.name!r}: the supervisor is gone")


def lease(name: str) -> Lease:
    """Return a lease: one worker of the server holds it at a time, through reloads and deaths of workers.

        async with prefork.lease("scheduler"):
            await run_scheduler()

    Entering waits until no other worker holds it; it waits for ever in all workers but one. The block is cancelled, and
    left without an error, when its worker begins to drain, so that another one goes on. `with` does the same in a
    thread, and does not end the block: look at `ending`. A worker that dies gives it up.

    In a process without a supervisor it is held at once. Raises ValueError for a name that cannot be one, RuntimeError
    if the supervisor refuses it: a worker may hold or wait for 64.
    """
    return Lease(name)


def _wait_readable(sock: socket.socket, timeout: float | None) -> bool:
    # Looked up now, because greenlets wait by a loop of their own: gevent replaces it, and eventlet has select only.
    poll = getattr(select, "poll", None)
    if poll is None:
        return bool(select.select([sock], [], [], timeout)[0])
    waiting = poll()
    waiting.register(sock, select.POLLIN)
    return bool(waiting.poll(None if timeout is None else timeout * 1000))


def _is_held(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == _HELD
    except OSError:
        return False
