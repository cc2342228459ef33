"""A worker that runs a program, from fork to exit: its process is made the program's, and the program is run.

What a worker does that serves a service is in `worker/main.py`.
"""

from __future__ import annotations

import atexit
import signal
import sys
import threading
import warnings

from .. import metrics
from ..core.messages import UnableMessage
from ..errors import ExitCode, PreforkError
from ..events import ProgramEnded
from ..program import Program
from ..system.processes import set_title
from ..system.scoreboard import FleetSetting
from ..system.signals import unblock_signals
from ..system.worker_info import set_worker
from ..worker import lease, process_group
from ..worker.context import WorkerContext
from ..worker.main import confine, send
from . import environment, kept_descriptors, private_paths, unix_paths
from .draining import Draining
from .host import Host
from .loop_level import LoopLevel
from .run_main import run_main
from .signal_waits import SignalWaits
from .socket_level import SocketLevel
from .stage import Stage
from .watch import Watch


def run(context: WorkerContext, program: Program) -> int:
    """Run `program` until it ends, and return its exit status."""
    fork = context.fork
    # The exit handlers that came with the fork are run by the parent, once.
    atexit._clear()
    set_worker(fork.slot, fork.generation)
    metrics.attach(context.row.service_metrics())
    lease.set_channel(fork.channel)
    process_group.become_leader()
    process_group.contain_children([fork.status, fork.tether, fork.channel], resets_signals=False)
    failure = confine(context)
    if failure is not None:
        return failure
    slots = fork.scoreboard.settings[FleetSetting.SLOTS]
    environment.enter(fork.slot, slots, fork.generation, context.variables)
    promised = fork.ready.enter_worker() if fork.ready is not None else ()
    _restore_hooks()
    host = Host(context)
    draining = Draining(host)
    _handle_signals(context, host, draining)
    watch = Watch(host, draining.begin)
    SocketLevel(host, watch.start).install()
    LoopLevel(host, watch.start).install()
    unix_paths.install(host)
    private_paths.install()
    kept_descriptors.install(but=promised)
    unblock_signals()
    set_title(f"worker {fork.slot} [{program}]")
    return _run(context, program, host, draining)


def _run(context: WorkerContext, program: Program, host: Host, draining: Draining) -> int:
    try:
        status = run_main(program, draining.told)
    except PreforkError as exc:
        send(context, UnableMessage(str(exc)))
        return exc.exit_code
    if host.stage is Stage.CHILD:
        # A process that the program has forked comes to its end here too, and is none of the supervisor's.
        return status
    if draining.begun:
        # However it ended, it was asked to.
        return ExitCode.OK
    how = f"exit status {status}"
    send(context, UnableMessage(f"the program ended with {how} before it was ready"))
    context.emit(ProgramEnded(how))
    return status


def _handle_signals(context: WorkerContext, host: Host, draining: Draining) -> None:
    """Handle what the supervisor sends, by signals that the program does not use."""

    def reopen() -> None:
        context.reopen_logs()
        if callable(signal.getsignal(signal.SIGUSR1)):
            # The program reopens files of its own.
            signal.raise_signal(signal.SIGUSR1)

    SignalWaits(host, {context.fork.signals.drain: draining.begin, context.fork.signals.reopen: reopen}).install()


def _restore_hooks() -> None:
    """Give back what the supervisor's log has taken, because the program prints and logs as it wants."""
    sys.unraisablehook = sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    warnings.showwarning = warnings._showwarning_orig  # type: ignore[attr-defined]  # what Python itself restores
