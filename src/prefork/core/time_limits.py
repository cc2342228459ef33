"""The fixed timeouts of prefork, in seconds, each derived from those that it has to contain.

Timeouts that an option sets are in `config.py`. Nothing here waits.
"""

from __future__ import annotations

# --- the end of a worker: each step happens inside the next limit -----------------------------------------------------

#: Connections that were aborted at the drain timeout: until their handlers' tasks have ended.
ABORT_TIMEOUT = 1.0
#: Each of the three steps after a lifespan object's `stop()`: cancelled tasks, asynchronous generators, threads.
EXIT_STEP_TIMEOUT = 0.5
#: Exit handlers of the service (atexit) and the end of the interpreter.
EXIT_HANDLERS_TIMEOUT = 1.5
#: The worker ends itself this long before its supervisor would kill it.
SUPERVISOR_MARGIN = 1.0

# --- the start of a worker --------------------------------------------------------------------------------------------

#: A worker factory or `start()` is given up this long before the boot timeout, so that the worker says what was slow.
SERVICE_START_MARGIN = 1.0

# --- an upgrade -------------------------------------------------------------------------------------------------------

#: How long a supervisor that has handed over would serve again, if its successor died: later that would bring back code
#: that nothing expects any more.
ROLL_BACK_TIME = 30.0
#: How much longer than a worker a new supervisor may take to start: it imports, binds and reads certificates.
SUPERVISOR_START_MARGIN = 15.0


def worker_exit_timeout(stop: float) -> float:
    """Return the seconds from the end of the drain to the end of the process, if `stop()` has `stop` seconds.

    SIGALRM enforces it in the worker.
    """
    return stop + 3 * EXIT_STEP_TIMEOUT + EXIT_HANDLERS_TIMEOUT


def worker_stop_timeout(drain: float, stop: float) -> float:
    """Return the seconds from the drain order to SIGKILL, for a worker with these timeouts."""
    return drain + ABORT_TIMEOUT + worker_exit_timeout(stop) + SUPERVISOR_MARGIN


def service_start_timeout(boot: float) -> float:
    """Return the seconds from the fork that a worker factory and `start()` have, if the worker has `boot` seconds."""
    return boot - min(SERVICE_START_MARGIN, boot / 4)


def successor_start_timeout(boot: float) -> float:
    """Return the seconds that a new supervisor has to serve, if each of its workers has `boot` seconds."""
    return boot + SUPERVISOR_START_MARGIN


def successor_stop_timeout(drain: float, stop: float) -> float:
    """Return the seconds from SIGTERM to SIGKILL for a new supervisor: longer than its workers have."""
    return worker_stop_timeout(drain, stop) + worker_exit_timeout(stop)
