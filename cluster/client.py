"""The clients of the cluster: those of soak, which also note the host of each answer, the peer it saw, and each loss.

`python -m cluster.client` is one such process, started by `soak.load.clients`.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from typing import Any

from soak import load
from soak.attempt import Attempt
from soak.ledger import Bin
from soak.load import Plan

from .losses import Loss
from .mark import unpack

#: Losses that are told one by one; only the ledger has the rest.
MAX_LOSSES = 10_000


class Client(load.Client):
    """Notes, beside the ledger, how often each host was the first to answer a connection."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._hosts: Counter[int] = Counter()
        self._hosts_of: dict[int, int] = {}
        self._strangers = 0
        """Answers in which the host saw another peer than the client is."""
        self._moved = 0
        """Answers that came from another host than the connection's first."""
        self._losses: list[Loss] = []

    def answered(self, attempt: Attempt) -> None:
        """Compare what the host says with the client's own name, and with the host of the first answer."""
        mark = unpack(attempt.pid)
        self._strangers += (mark.address, mark.port) != attempt.sock.getsockname()
        first = self._hosts_of.setdefault(attempt.number, mark.host)
        self._moved += first != mark.host
        if attempt.step == 1:
            self._hosts[mark.host] += 1

    def settled(self, attempt: Attempt) -> None:
        """Note a loss with what is needed to find it in the balancer's log."""
        host = self._hosts_of.pop(attempt.number, 0)
        if attempt.end in (None, Bin.OK) or len(self._losses) == MAX_LOSSES:
            return
        age = time.monotonic() - attempt.began
        port = int(attempt.sock.getsockname()[1])
        self._losses.append(Loss(attempt.kind, str(attempt.end), port, host, time.time() - age, age))

    def progress(self) -> dict[str, Any]:
        """Return also the number of connections that each host has answered."""
        return {**super().progress(), "hosts": dict(self._hosts)}

    def result(self) -> dict[str, Any]:
        """Return also all that was noted."""
        losses = [dataclasses.asdict(each) for each in self._losses]
        noted = {"hosts": dict(self._hosts), "strangers": self._strangers, "moved": self._moved, "losses": losses}
        return {**super().result(), **noted}


if __name__ == "__main__":
    load.main(Client)
