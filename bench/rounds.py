"""The rounds: every contestant does every work in each of them, one after the other, in an order that changes.

`turns` decides the order and is pure; `measure` starts the servers, warms them and has the generator run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from .generator import Failure, Generator
from .results import Results, Series
from .roster import Contestant
from .servers import Server, running
from .works import Scale, Work


class Progress(Protocol):
    """Shows what is being done, and how many of how many steps are done, if that is known."""

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None: ...


def turns(contestants: Sequence[Contestant], work: Work, number: int) -> list[Contestant]:
    """Return the contestants that do `work`, in the order of round `number`.

    It rotates each time and runs backwards in every second round, so that none is always first or after the same one.
    """
    able = [each for each in contestants if each.does(work)]
    if not able:
        return []
    start = number * max(1, len(able) // 3) % len(able)
    order = able[start:] + able[:start]
    return order[::-1] if number % 2 else order


class Fleet:
    """The servers of a round: one process for each contestant and kind of handler, with and without TLS."""

    def __init__(self, generator: Generator, build: Path, certificate: tuple[str, str] | None, core: int) -> None:
        self._generator = generator
        self._build = build
        self._certificate = certificate
        self._core = core
        self._servers: dict[str, Server] = {}

    @contextlib.contextmanager
    def serving(self, works: Sequence[Work], contestants: Sequence[Contestant]) -> Iterator[None]:
        """Start all that `works` need, and warm each."""
        commands = {}
        for work in works:
            for contestant in contestants:
                if contestant.does(work):
                    tls = self._certificate if work.tls else None
                    commands[_key(contestant, work)] = contestant.command(self._build, work.handler, tls)
        with running(commands, self._core) as self._servers:
            for key, server in self._servers.items():
                # What cannot even be warmed fails again when it is measured, and is noted there.
                with contextlib.suppress(Failure):
                    self._generator.warm(server, "1.3" if key.endswith("tls") else "")
            yield

    def server(self, contestant: Contestant, work: Work) -> Server:
        """The one that does `work` for `contestant`."""
        return self._servers[_key(contestant, work)]


def _key(contestant: Contestant, work: Work) -> str:
    handler, tls = work.server
    return f"{contestant.name}-{handler}{'-tls' if tls else ''}"


def measure(
    results: Results,
    scale: Scale,
    contestants: Sequence[Contestant],
    generator: Generator,
    fleet: Fleet,
    progress: Progress,
) -> None:
    """Add all rounds of `scale` to `results`. Raises BenchError for a server that does not start."""
    results.rounds = scale.rounds
    for work in scale.works:
        results.works[work.name] = {each.name: Series() for each in contestants if each.does(work)}
    with contextlib.ExitStack() as kept:
        if not scale.fresh:
            progress("starting the servers")
            kept.enter_context(fleet.serving(scale.works, contestants))
        for number in range(scale.rounds):
            with contextlib.ExitStack() as stack:
                if scale.fresh:
                    progress(f"round {number + 1} of {scale.rounds}: starting the servers")
                    stack.enter_context(fleet.serving(scale.works, contestants))
                for position, work in enumerate(scale.works):
                    done, total = number * len(scale.works) + position, scale.rounds * len(scale.works)
                    progress(f"round {number + 1} of {scale.rounds}: {work.title}", done, total)
                    for contestant in turns(contestants, work, number):
                        series = results.works[work.name][contestant.name]
                        _once(series, generator, work, fleet.server(contestant, work), scale)


def _once(series: Series, generator: Generator, work: Work, server: Server, scale: Scale) -> None:
    try:
        sample = generator.measure(work, server, scale.warm_up, scale.seconds_for(work))
    except Failure as exc:
        series.add(None, str(exc))
    else:
        series.add(sample)
