"""Fairness among workers: accept the next connection, or leave it to a less loaded sibling. Pure.

Why. All workers watch the same listening socket, a connection wakes every idle one, and the fastest accepts it. Left to
themselves, one of four workers gets nearly all of a trickle of connections, and 1.5 times the mean of a burst.

What each worker knows. Two numbers of its siblings, of at most 32 for each connection, read from shared memory without
a lock (`worker/fleet_admission.py`):
* `open`, its open connections. Long connections become even by it.
* `assigned`, a virtual count of the connections that it was given, as in fair queueing. Short connections become even
  by it, because with those `open` is 0 nearly always. A new worker starts at the median of its siblings, and one that
  was blocked for long at most MAX_LAG below the lowest. Otherwise it would be given every connection until it has
  caught up.

What a worker does. When a sibling has less, the worker defers: it stops watching the socket for DEFERRAL seconds. An
idle sibling accepts within 0.1 ms. No worker can hold a connection back for long, because nothing is locked:
* After `max_deferrals` deferrals the worker accepts. A sibling that did not move meanwhile counts as unresponsive
  (blocked, stopped or dead), and nothing is left to it until its numbers change.
* When the queue is long, a worker accepts if its fair share of the queue would not put it ahead of its siblings.
* A worker that has deferred goes on until it is not ahead at all (`deferring`), otherwise it would have to wake up for
  the very next connection.
* Each time a sibling takes what was left to it the delay doubles, up to MAX_DOUBLINGS times, so an overloaded worker
  wakes less often and stays out of the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

#: (open, assigned) of a worker.
Load = tuple[int, int]

#: Workers are equal if their open connections differ by no more than 1 + open / 2**SLACK_SHIFT. A finer balance would
#: cost a deferral for nearly every connection.
SLACK_SHIFT = 6
#: How much the assigned counts of equal workers may differ. Decides where connections are short.
ASSIGNED_SLACK = 8
#: Seconds of one deferral.
DEFERRAL = 0.0002
MAX_DOUBLINGS = 3
#: Deferrals for one connection, times the workers that a CPU has to run: a healthy worker may be waiting for the CPU.
DEFERRALS_PER_WORKER = 4
#: How far a worker's assigned count may lag behind the lowest of its siblings.
MAX_LAG = 64


def less_loaded(own: Load, siblings: Mapping[int, Load], waiting: int, deferring: bool) -> list[int]:
    """Return the siblings that should accept before a worker with the load `own`; [] if it should accept.

    `waiting` is the length of the queue, 0 if unknown. `deferring` means no slack.
    """
    open, assigned = own
    fair_part = waiting // (len(siblings) + 1)
    max_open = open - fair_part - (0 if deferring else 1 + (open >> SLACK_SHIFT))
    max_assigned = assigned - fair_part - (0 if deferring else ASSIGNED_SLACK)
    return [
        number
        for number, (other_open, other_assigned) in siblings.items()
        if other_open < max_open or (other_open <= open and other_assigned < max_assigned)
    ]


def max_deferrals(workers: int, cpus: int) -> int:
    """Return the number of deferrals for one connection on a machine with `cpus` CPUs."""
    return DEFERRALS_PER_WORKER * max(1, -(-workers // cpus))


def next_assigned(assigned: int, lowest: int | None) -> int:
    """Return the assigned count of a worker that has just accepted; `lowest` is the lowest of its siblings."""
    return (assigned if lowest is None else max(assigned, lowest - MAX_LAG)) + 1


class Deferrals:
    """The deferrals of one worker. Ask `delay` before each accept, then report `finished` or `missed`."""

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._deferring = False
        self._count = 0
        """Deferrals for the connection that waits now."""
        self._doublings = 0
        self._seen: Mapping[int, Load] = {}
        """The loads of the siblings at the first of these deferrals."""
        self._unresponsive: dict[int, Load] = {}
        """The loads with which siblings became unresponsive."""

    def responsive(self, loads: dict[int, Load]) -> dict[int, Load]:
        """Return `loads` without the unresponsive siblings; one whose load has changed is responsive again."""
        if not self._unresponsive:
            return loads
        for number, load in list(self._unresponsive.items()):
            if loads.get(number) == load:
                del loads[number]
            else:
                del self._unresponsive[number]
        return loads

    def delay(self, own: Load, loads: Mapping[int, Load], workers: int, waiting: Callable[[], int]) -> float:
        """Return 0.0 if a worker with the load `own` should accept now, otherwise the seconds to defer.

        `loads` are the responsive siblings, `workers` the number of all. `waiting` returns the length of the queue; it
        is called only when a sibling has less, because it costs a system call.
        """
        with_less = less_loaded(own, loads, 0, self._deferring)
        if not with_less:
            self._deferring = False
            self._doublings = 0
            return 0.0
        queue = waiting()
        # Of a shorter queue the fair part of each worker is 0, and the answer would be the same.
        if queue > len(loads):
            with_less = less_loaded(own, loads, queue, self._deferring)
        if self._count:
            # No sibling has taken what was left to it, so a longer delay would only delay the connection.
            self._doublings = 0
        if self._count >= max_deferrals(workers, self._cpus):
            # Those that have moved are served well enough; this connection has waited long enough, too.
            self._unresponsive |= {each: loads[each] for each in with_less if self._seen.get(each) == loads[each]}
            return 0.0
        if not with_less:
            return 0.0
        if not self._count:
            self._seen = loads
        self._deferring = True
        self._count += 1
        return DEFERRAL * (1 << self._doublings)

    def finished(self) -> None:
        """The worker has accepted, or the queue was empty when it wanted to: the next connection starts anew."""
        self._count = 0

    def missed(self) -> None:
        """After a deferral the queue was empty: a sibling has accepted."""
        self._count = 0
        self._doublings = min(self._doublings + 1, MAX_DOUBLINGS)
