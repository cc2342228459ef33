"""Whose queue is whose, where every worker has a listening socket of its own (--reuse-port).

Pure. The sockets outlive workers, and there may be more or fewer of them than workers: none may be nobody's, as the
kernel goes on putting connections into it.
"""

from __future__ import annotations


def own_lanes(slot: int, slots: int, lanes: int) -> frozenset[int]:
    """The lanes, of so many, that the worker in `slot` accepts from, when there are `slots` workers.

    With fewer workers than lanes some have several; with more, some lanes are shared.
    """
    if slots >= lanes:
        return frozenset({slot % lanes})
    return frozenset(lane for lane in range(lanes) if lane % slots == slot % slots)
