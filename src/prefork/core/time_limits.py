"""The fixed timeouts of prefork, in seconds, each derived from those that it has to contain.

Timeouts that an option sets are in `config.py`. Nothing here waits.
"""

from __future__ import annotations

# --- the end of a worker: each step happens inside the next limit -----------------------------------------------------

#: Connections that were aborted at the drain timeout: until their handlers' tasks have ended.
ABORT_TIMEOUT = 1.0
#: A lifespan object's `stop()`.
SERVICE_STOP_TIMEOUT = 3.0
#: Each of the three steps after it: cancelled tasks, asynchronous generators, threads.
EXIT_STEP_TIMEOUT = 0.5
#: Exit handlers of the service (atexit) and the end of the interpreter.
EXIT_HANDLERS_TIMEOUT = 1.5
#: From the end of the drain to the end of the process. SIGALRM enforces it in the worker.
WORKER_EXIT_TIMEOUT = SERVICE_STOP_TIMEOUT + 3 * EXIT_STEP_TIMEOUT + EXIT_HANDLERS_TIMEOUT
#: Beyond the drain timeout, until the supervisor kills a worker: the worker ends itself a second earlier.
WORKER_STOP_MARGIN = ABORT_TIMEOUT + WORKER_EXIT_TIMEOUT + 1.0

# --- the start of a worker --------------------------------------------------------------------------------------------

#: A lifespan object's `start()`.
SERVICE_START_TIMEOUT = 60.0

# --- an upgrade -------------------------------------------------------------------------------------------------------

#: How much longer than a worker a new supervisor may take to start: it imports, binds and reads certificates.
SUPERVISOR_START_MARGIN = 15.0


def worker_stop_timeout(drain: float) -> float:
    """Return the seconds from SIGTERM to SIGKILL for a worker that drains for up to `drain` seconds."""
    return drain + WORKER_STOP_MARGIN


def successor_start_timeout(boot: float) -> float:
    """Return the seconds that a new supervisor has to serve, if each of its workers has `boot` seconds."""
    return boot + SUPERVISOR_START_MARGIN


def successor_stop_timeout(drain: float) -> float:
    """Return the seconds from SIGTERM to SIGKILL for a new supervisor: longer than its workers have."""
    return worker_stop_timeout(drain) + WORKER_STOP_MARGIN
