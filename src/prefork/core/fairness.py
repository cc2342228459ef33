"""Who should take the next connection: the worker that has the fewest open, and of equals the one that was given fewer.

Pure. A worker that is not the one steps back for a moment, so that the one can. A connection does not wait for fairness
longer than that: who was given the moment and did not use it is busy, and is not waited for until it has moved.
"""

from __future__ import annotations

from collections.abc import Mapping

#: (open, share) of a worker: its open connections, and those that it was given, in step with its siblings.
Load = tuple[int, int]

#: Workers whose numbers of open connections differ by no more than one and a sixty-fourth are equals: a finer balance
#: would cost a step back for nearly every connection.
SLACK_SHIFT = 6
#: Connections that a worker may have been given more than an equal. It decides where connections are short: nobody has
#: any open then.
SHARE_SLACK = 8
#: Seconds of one step back. An idle sibling takes the connection within half of it.
STEP = 0.0002
#: While others do take them, steps back are doubled, so many times: who is ahead is woken by a few of the connections
#: that are not for him, and so is not in the way of those that they are for.
MAX_DOUBLINGS = 3
#: Steps back after which a sibling that has not moved counts as busy, and is not waited for until it has: so many, for
#: each worker that a processor has to serve, as one that is well may have to wait for it.
MOMENT = 4
#: How far behind the others a worker's share may be: one that was blocked for long is not given everything at once.
SHARE_LAG = 64


def first(own: Load, siblings: Mapping[int, Load], waiting: int, yielding: bool) -> list[int]:
    """The siblings that should go before a worker with the load `own`, when so many connections wait; [] if it should
    take one.

    `yielding`: it has let others go first before, and goes on until it is not ahead at all, so that it need not begin
    again with the next connection. Where many wait there is enough for all: who would have no more than the others
    when all of them had been shared out goes on.
    """
    open, share = own
    allowance = waiting // (len(siblings) + 1)
    most_open = open - allowance - (0 if yielding else 1 + (open >> SLACK_SHIFT))
    most_share = share - allowance - (0 if yielding else SHARE_SLACK)
    return [
        number
        for number, (other_open, other_share) in siblings.items()
        if other_open < most_open or (other_open <= open and other_share < most_share)
    ]


def moment(workers: int, processors: int) -> int:
    """The steps back for one connection, on this machine."""
    return MOMENT * max(1, -(-workers // processors))


def next_share(share: int, least: int | None) -> int:
    """The share of a worker that takes a connection; `least` is that of the sibling that has been given the fewest."""
    return (share if least is None else max(share, least - SHARE_LAG)) + 1
