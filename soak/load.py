"""Load: a mix of short, long and idle connections at a bounded rate, made by client processes.

`python -m soak.load` is such a process: it reads a plan as one line of JSON, then `stop`; it writes its progress, and
its ledger as the last line. `Clients` is the other end. What an attempt is, is in `attempt.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .attempt import Attempt, Script, Target
from .client import Pump
from .errors import HarnessError
from .ledger import Ledger

ROOT = Path(__file__).parents[1]
#: Seconds between reports of a client process.
REPORT = 0.2
#: A client that is so late does not catch up: a burst would measure the queue, not the server.
LATEST = 0.1


@dataclass(frozen=True, slots=True)
class Mix:
    """Parts of each kind among the connections, and the seconds that long and idle ones stay."""

    short: float = 0.95
    long: float = 0.035
    idle: float = 0.015
    stay: float = 4.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What one client process does. `targets` are pairs of a part and a target; `rate` is connections a second."""

    targets: tuple[tuple[float, Target], ...]
    rate: float
    seed: int
    mix: Mix = Mix()
    most_open: int = 4000
    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    authority: str = ""
    """The certificate that TLS servers are checked by, a PEM file."""

    def encode(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def decode(cls, line: str) -> Plan:
        """Return the plan of a line that `encode` made."""
        value = json.loads(line)
        targets = tuple((part, Target(_address(each.pop("address")), **each)) for part, each in value.pop("targets"))
        return cls(targets, mix=Mix(**value.pop("mix")), **value)


def _address(value: Any) -> tuple[str, int] | str:
    return value if isinstance(value, str) else (str(value[0]), int(value[1]))


def size_of_body(dice: random.Random) -> int:
    """Return a random size: below 512 bytes in 70 % of cases, up to 8 KiB in 25 %, up to 128 KiB in 5 %."""
    throw = dice.random()
    if throw < 0.7:
        return dice.randrange(0, 512)
    return dice.randrange(512, 8192) if throw < 0.95 else dice.randrange(8192, 128 * 1024)


def script(dice: random.Random, mix: Mix) -> Script:
    """What the next connection does."""
    throw = dice.random() * (mix.short + mix.long + mix.idle)
    if throw < mix.short:
        return Script("short", ((0.0, size_of_body(dice)),))
    stay = mix.stay * dice.uniform(0.2, 1.8)
    if throw < mix.short + mix.long:
        number = dice.randrange(3, 9)
        waits = [0.0, *(stay / (number - 1) for _ in range(number - 1))]
        return Script("long", tuple((wait, size_of_body(dice)) for wait in waits))
    return Script("idle", ((stay, size_of_body(dice)),))


# --- the process ------------------------------------------------------------------------------------------------------


class Client:
    """Begins the attempts of a plan at its rate until it is told to stop, and writes what came of them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._dice = random.Random(plan.seed)
        self._parts = [part for part, _ in plan.targets]
        self._targets = [target for _, target in plan.targets]
        self.ledger = Ledger()
        self.held = 0
        """Attempts that were not made, as too many were open: the machine was saturated."""
        context = ssl.create_default_context(cafile=plan.authority) if plan.authority else None
        self.pump = Pump(
            self.ledger,
            connect_timeout=plan.connect_timeout,
            read_timeout=plan.read_timeout,
            context=context,
            first_sequence=plan.seed << 40,
            answered=self.answered,
            settled=self.settled,
        )

    def answered(self, attempt: Attempt) -> None:
        """An attempt got a right answer: nothing more to note here."""

    def settled(self, attempt: Attempt) -> None:
        """An attempt has ended: nothing to note beside the ledger here."""

    def progress(self) -> dict[str, Any]:
        """What is reported while it runs, as plain values."""
        return {"attempts": self.ledger.attempts, "lost": self.ledger.lost}

    def result(self) -> dict[str, Any]:
        """What is reported at the end, as plain values. Raises Unbalanced."""
        return {"ledger": self.ledger.encode(), "held": self.held}

    def run(self) -> None:
        """Run until standard input says stop, and every attempt has ended."""
        os.set_blocking(0, False)
        self.pump.watch(0)
        interval, next_at, report_at = 1 / self._plan.rate, time.monotonic(), 0.0
        stopping = False
        while not (stopping and not self.pump.open):
            now = time.monotonic()
            if now >= report_at:
                report_at = now + REPORT
                _say(self.progress())
                stopping = stopping or _told_to_stop()
            next_at = max(next_at, now - LATEST)
            while not stopping and now >= next_at:
                next_at += interval
                self._one_more()
            self.pump.turn(REPORT if stopping else next_at - now)
        self.pump.close()
        _say(self.result())

    def _one_more(self) -> None:
        if self.pump.open >= self._plan.most_open:
            self.held += 1
            return
        target = self._dice.choices(self._targets, self._parts)[0]
        self.pump.begin(target, script(self._dice, self._plan.mix))


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _told_to_stop() -> bool:
    try:
        data = os.read(0, 4096)
    except BlockingIOError:
        return False
    if not data:
        # The parent is gone, so no process reads the result.
        os._exit(1)
    return True


# --- its parent -------------------------------------------------------------------------------------------------------


class Clients:
    """Running client processes. Made by `clients`."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._processes = processes
        self._heard = [b""] * len(processes)
        self.last: list[dict[str, Any]] = [{} for _ in processes]
        """What each has reported last: its progress, and its result in the end."""
        for process in processes:
            os.set_blocking(_pipe(process.stdout).fileno(), False)

    @property
    def attempts(self) -> int:
        """How many attempts they have begun, as of a moment ago. Raises HarnessError if one of them has failed."""
        self.listen()
        return sum(int(last.get("attempts", 0)) for last in self.last)

    def stop(self, deadline: float = 120.0) -> tuple[Ledger, int]:
        """Let them begin nothing more and finish what is open: the ledger of all, and how many attempts were held back.

        Raises HarnessError if that takes longer than `deadline` seconds.
        """
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):
                _pipe(process.stdin).write(b"stop\n")
                _pipe(process.stdin).flush()
        end = time.monotonic() + deadline
        while not all("ledger" in last for last in self.last):
            if time.monotonic() > end:
                raise HarnessError(f"a client has not finished within {deadline:g} s")
            self.listen()
            time.sleep(0.02)
        total = Ledger()
        for last in self.last:
            total.merge(Ledger.decode(last["ledger"]))
        return total, sum(int(last["held"]) for last in self.last)

    def listen(self) -> None:
        """Hear how they get on. Raises HarnessError if one of them has failed."""
        for number, process in enumerate(self._processes):
            data = _pipe(process.stdout).read()
            *lines, self._heard[number] = (self._heard[number] + (data or b"")).split(b"\n")
            if lines:
                self.last[number] = json.loads(lines[-1])
            if data == b"" and "ledger" not in self.last[number]:
                raise HarnessError(f"a client has ended (exit status {process.wait(10)}); its error is above")


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


@contextlib.contextmanager
def clients(plans: Sequence[Plan], prefix: Sequence[str] = (), module: str = "soak.load") -> Iterator[Clients]:
    """A process of `module` for each plan, run under `prefix`; at the end of the block none is left."""
    with contextlib.ExitStack() as stack:
        processes = []
        for plan in plans:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                # A Ctrl-C is the harness's, which has to end them in order.
                start_new_session=True,
            )
            stack.callback(_end, process)
            _pipe(process.stdin).write(plan.encode().encode() + b"\n")
            _pipe(process.stdin).flush()
            processes.append(process)
        yield Clients(processes)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    with contextlib.suppress(BrokenPipeError):
        _pipe(process.stdin).close()
    _pipe(process.stdout).close()


def plans(count: int, targets: Sequence[tuple[float, Target]], rate: float, seed: int, **more: Any) -> list[Plan]:
    """`count` plans that share `rate`, each from an address of its own, so that no port runs out."""
    made = []
    for number in range(count):
        own = tuple(
            (
                part,
                target
                if isinstance(target.address, str)
                else dataclasses.replace(target, source=f"127.1.0.{number + 1}"),
            )
            for part, target in targets
        )
        made.append(Plan(own, rate / count, seed + number, **more))
    return made


def main(kind: type[Client] = Client) -> None:
    """Run as a client process of this kind: read the plan from standard input, and print the ledger."""
    line = b""
    while not line.endswith(b"\n"):
        # Byte by byte: what comes behind the line is for later.
        data = os.read(0, 1)
        if not data:
            return
        line += data
    try:
        kind(Plan.decode(line.decode())).run()
    except HarnessError as exc:
        sys.stderr.write(f"soak: a client cannot go on: {exc}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
