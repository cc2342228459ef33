"""Load on a server of the catalogue: clients that do one transaction after the other, and a ledger of them all.

What the ledger must say is in the tests.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator

from helpers.support import wait_until

from programs.clients import DEADLINE, Client

CLIENTS = 4
#: Seconds between two transactions of a client, which bounds the ports that wait for the end of their connections.
PAUSE = 0.003
#: How many failures are told by their text.
TOLD = 10


class Ledger:
    """What became of each transaction. The clients write it, each under the lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answered: Counter[int] = Counter()
        self._failures: list[str] = []

    def answered(self, pid: int) -> None:
        """Note a right answer of the process `pid`."""
        with self._lock:
            self._answered[pid] += 1

    def failed(self, reason: str) -> None:
        """Note a transaction that did not end with a right answer."""
        with self._lock:
            self._failures.append(reason)

    @property
    def done(self) -> int:
        """The number of right answers up to now."""
        with self._lock:
            return self._answered.total()

    @property
    def pids(self) -> set[int]:
        """The processes that have answered up to now."""
        with self._lock:
            return set(self._answered)

    @property
    def failures(self) -> list[str]:
        """What went wrong up to now, in the order in which it happened."""
        with self._lock:
            return list(self._failures)

    def report(self) -> str:
        """Return the numbers, and the first failures in words."""
        failures = self.failures
        lines = [f"{self.done} done by {sorted(self.pids)}, {len(failures)} failed", *failures[:TOLD]]
        return "\n".join(lines)

    def wait_for_more(self, count: int) -> None:
        """Wait for `count` further right answers. Raises AssertionError after a deadline."""
        goal = self.done + count
        wait_until(lambda: self.done >= goal, 2 * DEADLINE, f"{count} more transactions; {self.report()}")

    def wait_for(self, pids: set[int]) -> None:
        """Wait until each of these processes has answered. Raises AssertionError after a deadline."""
        wait_until(lambda: pids <= self.pids, 2 * DEADLINE, f"answers of {sorted(pids)}; {self.report()}")


@contextlib.contextmanager
def loading(client: Client, port: int, clients: int = CLIENTS) -> Iterator[Ledger]:
    """Have clients ask the server within the block, each in a thread. They end with the transaction they are in."""
    ledger, stopped = Ledger(), threading.Event()

    def ask_again_and_again() -> None:
        while not stopped.is_set():
            began = time.monotonic()
            try:
                ledger.answered(client.request(port))
            except Exception as exc:  # whatever a library raises is a failed transaction
                ledger.failed(f"after {time.monotonic() - began:.2f} s: {exc!r}")
            stopped.wait(PAUSE)

    threads = [threading.Thread(target=ask_again_and_again, name=f"client {number}") for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield ledger
    finally:
        stopped.set()
        for thread in threads:
            thread.join(2 * DEADLINE)
