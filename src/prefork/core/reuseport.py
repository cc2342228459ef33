"""Which sockets of a reuseport group a worker accepts from (--reuse-port).

Pure. The sockets outlive workers, and their number may differ from that of the workers. Every socket must have a
worker, otherwise connections that the kernel puts into its queue are never accepted.
"""

from __future__ import annotations


def own_sockets(slot: int, slots: int, sockets: int) -> frozenset[int]:
    """Return the numbers of the sockets, of `sockets` in all, that the worker in `slot` of `slots` accepts from.

    With fewer workers than sockets, some workers have several. With more, some sockets are shared.
    """
    if slots >= sockets:
        return frozenset({slot % sockets})
    return frozenset(number for number in range(sockets) if number % slots == slot % slots)
