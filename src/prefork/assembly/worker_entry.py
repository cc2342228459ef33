"""Become a worker in a newly forked process: put its context together, run it, and end the process.

What a worker does is in `worker/main.py`; here is what only the program that forks it knows.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import traceback
from typing import NoReturn

from ..config import Settings
from ..core.messages import UnableMessage, encode
from ..errors import ExitCode, place_of, reason_of

# Imported before the fork, although only workers run it: a replacement starts sooner and shares the memory. It also is
# of its supervisor's version when prefork has been upgraded on disk meanwhile.
from ..observe.logs import EventLog, configure
from ..program import Program
from ..system.fork_context import ForkContext
from ..worker import fresh_code, main
from ..worker.context import GenerationConfig, WorkerContext
from ..worker.exit import exit_process
from .access_log import access_log_maker
from .resources import ServerResources


def run_worker(fork: ForkContext, config: GenerationConfig, resources: ServerResources, target: object) -> NoReturn:
    """Serve `target` as a worker, then end the process: the caller's code must not go on in two processes."""
    code: int = ExitCode.BUG
    log: EventLog | None = None
    try:
        resources.release_in_worker(config)
        if config.settings.reload:
            fresh_code.install()
        program = config.settings.program
        settings = config.settings
        row = fork.scoreboard.become_writer(fork.row)
        account = row.account()
        log = configure(
            settings.log_format,
            settings.log_level,
            worker=fork.slot,
            alone=program is not None,
            unlimited=settings.reload,
            on_dropped=account.log_dropped,
        )
        context = WorkerContext(
            fork=fork,
            config=config,
            row=row,
            target=target,
            emit=log,
            held_back=log,
            make_access_log=access_log_maker(resources.access_log, settings.log_format, fork.slot, log, account),
            reopen_logs=functools.partial(resources.log_files.reopen, log),
            asked=resources.program_sockets.bound(),
            variables={} if resources.metrics_directory is None else resources.metrics_directory.variables(),
        )
        code = main.run(context) if program is None else _run_program(context, program)
    except (OSError, MemoryError) as exc:
        code = ExitCode.SERVICE
        # The reason goes to the supervisor, which decides whether another worker is forked.
        with contextlib.suppress(OSError):
            os.write(fork.status.fileno(), encode(UnableMessage(f"{reason_of(exc)} (in {place_of(exc)})")))
    except BaseException:
        traceback.print_exc()
    finally:
        if log is not None:
            log.flush(everything=True)
        exit_process(code)


def preload(settings: Settings) -> None:
    """Import, before the first fork, what only the workers of a program need; other servers start without it."""
    if settings.program is not None:
        importlib.import_module("..hosting.main", __package__)


def _run_program(context: WorkerContext, program: Program) -> int:
    from ..hosting import main as hosting

    return hosting.run(context, program)
