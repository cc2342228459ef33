"""The command line: what to measure, and where its report goes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from prefork.cli.progress import ProgressLine

from . import commands, contract, memory, peers, redis, report, roster, rounds, targets, works
from .accounting import OthersMeter, raise_descriptor_limit
from .build import Programs, build
from .certificates import write_certificate
from .cores import Cores, choose, usable
from .environment import describe
from .errors import BenchError
from .generator import Failure, Generator
from .results import Command, Results
from .servers import ROOT

BUILD = ROOT / "build" / "bench"
DOCS = ROOT / "docs"
PARTS = ("works", "memory", "commands", "redis")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure prefork beside its peers.")
    parser.add_argument("--quick", action="store_true", help="what matters most, in less than a minute")
    parser.add_argument("--targets", action="store_true", help="only what the check of the targets compares")
    parser.add_argument("--rounds", type=int, help="how often each contestant does each work (default: 5, quick 3)")
    parser.add_argument(
        "--seconds", type=float, help="of each measurement (default: 0.15 or 0.3, quick 0.1; twice that for slow works)"
    )
    parser.add_argument("--work", action="append", metavar="NAME", help="only this one (repeatable); see --list")
    parser.add_argument("--contestant", action="append", metavar="NAME", help="only this one (repeatable); see --list")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part (repeatable; default: all)")
    parser.add_argument(
        "--into", type=Path, help="where the report goes (default: docs, or build/bench if not a full run)"
    )
    parser.add_argument("--render", action="store_true", help="measure nothing; write the report again from its JSON")
    parser.add_argument("--list", action="store_true", help="say what works and contestants there are")
    return parser.parse_args(arguments)


def main() -> int:
    """Exit status: 0; 1, with one line that says why, if something is missing or does not start; 130 if stopped."""
    options = parse()
    # TERM ends it as ^C does, through every `finally`, so that no process stays behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(options)
    except BenchError as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbench: stopped", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.list:
        print("works:", *(f"  {work.name:24} {work.title}" for work in works.FULL), sep="\n")
        print("contestants:", *(f"  {each.name:24} {each.label}" for each in roster.ALL), sep="\n")
        return 0
    lesser = ("quick", "targets", "work", "contestant", "part", "rounds", "seconds")
    whole = not any(getattr(options, name) for name in lesser)
    into = options.into or (DOCS if whole or options.render else BUILD)
    if options.render:
        runs = report.load(into)
        results, paths = runs[0], report.render(runs, into)
    else:
        results = _measure(options)
        _line().close()
        for line in report.failures(results):
            print(f"bench: FAILED {line}", file=sys.stderr)
        if report.is_void(results):
            raise BenchError("not one work was measured, so no report is written")
        paths = report.write(results, into)
    print(report.summary(results, partial=not (whole or options.targets or options.render)))
    print("written:", *(os.path.relpath(path) for path in paths))
    return 0


def _scale(options: argparse.Namespace) -> works.Scale:
    scale = works.QUICK_SCALE if options.quick else works.FULL_SCALE
    if options.targets:
        scale = dataclasses.replace(scale, works=targets.WORKS)
    if options.work:
        known = {work.name: work for work in works.FULL}
        if unknown := [name for name in options.work if name not in known]:
            raise BenchError(f"--work {unknown[0]}: not known; --list says what is")
        scale = dataclasses.replace(scale, works=tuple(known[name] for name in known if name in options.work))
    if options.rounds:
        scale = dataclasses.replace(scale, rounds=options.rounds)
    if options.seconds:
        scale = dataclasses.replace(scale, seconds=options.seconds, grid_seconds=options.seconds)
    return scale


def _contestants(options: argparse.Namespace) -> list[roster.Contestant]:
    if options.targets and not options.contestant:
        return list(targets.CONTESTANTS)
    if not options.contestant:
        return [each for each in roster.ALL if each.quick or not options.quick]
    known = {each.name: each for each in roster.ALL}
    if unknown := [name for name in options.contestant if name not in known]:
        raise BenchError(f"--contestant {unknown[0]}: not known (--list names the known ones)")
    return [known[name] for name in known if name in options.contestant]


def _leave_out(results: Results, lines: list[str]) -> None:
    """Note what is left out of this run, and say it aloud."""
    results.missing += lines
    for line in lines:
        print(f"bench: LEFT OUT {line}", file=sys.stderr)


def _installed(contestants: list[roster.Contestant], results: Results) -> list[roster.Contestant]:
    """Those whose module is here; why each other one is not is noted."""
    reasons = {each.name: peers.absent(each.needs) if each.needs else "" for each in contestants}
    _leave_out(results, [f"{each.label}: {reasons[each.name]}" for each in contestants if reasons[each.name]])
    return [each for each in contestants if not reasons[each.name]]


def _measure(options: argparse.Namespace) -> Results:
    if sys.platform != "linux":
        raise BenchError("this needs Linux: the generator's epoll, and the kernel's books in /proc")
    scale, contestants, cores = _scale(options), _contestants(options), choose(usable())
    descriptor_limit = raise_descriptor_limit()
    began, others = time.monotonic(), OthersMeter()
    _say("building the generator")
    programs = build(BUILD)
    generator = Generator(programs.load, cores.generator)
    results = Results(environment=describe(cores, generator.about()))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        certificate = write_certificate(Path(folder)) if programs.tls else None
        contestants = _installed(contestants, results)
        scale = _feasible(scale, results, programs, descriptor_limit)
        contestants, refused = contract.examine(
            contestants, scale.works, generator, BUILD, certificate, cores.server, _say
        )
        _leave_out(results, refused)
        parts = options.part or _parts(options)
        for part in PARTS:
            if part not in parts:
                results.missing.append(f"{part}: not asked for in this run")
        if "works" in parts:
            fleet = rounds.Fleet(generator, BUILD, certificate, cores.server)
            rounds.measure(results, scale, contestants, generator, fleet, _say)
        if "memory" in parts:
            idlers = [each for each in contestants if not options.targets or each in targets.IDLERS]
            memory.measure(
                results, idlers, generator, BUILD, certificate, cores.server, scale.idle, descriptor_limit, _say
            )
        if "commands" in parts:
            with _survived(results, "prefork serve"):
                _measure_commands(results, scale, generator)
        if "redis" in parts:
            with _survived(results, "redis-benchmark"):
                _measure_redis(results, scale, cores)
    results.environment["other processes"] = f"{others.share():.1%} of the machine's CPU time while it ran"
    results.environment["duration"] = f"{time.monotonic() - began:.0f} s"
    return results


def _parts(options: argparse.Namespace) -> tuple[str, ...]:
    if options.quick:
        return ("works", "commands")
    return ("works", "memory", "commands") if options.targets else PARTS


def _feasible(scale: works.Scale, results: Results, programs: Programs, descriptor_limit: int) -> works.Scale:
    """Without what this machine cannot do; each omission is noted, and said aloud."""
    kept, lines = [], []
    for work in scale.works:
        if work.tls and not programs.tls:
            lines.append(f"{work.title}: no OpenSSL for the generator (Debian: libssl-dev)")
        elif work.connections > descriptor_limit - memory.SPARE:
            lines.append(f"{work.title}: the limit of descriptors is {descriptor_limit}")
        else:
            kept.append(work)
    _leave_out(results, lines)
    return dataclasses.replace(scale, works=tuple(kept))


@contextlib.contextmanager
def _survived(results: Results, what: str) -> Iterator[None]:
    """Leave a failing part out, because measuring those before it took 15 minutes."""
    try:
        yield
    except (BenchError, Failure) as exc:
        _leave_out(results, [f"{what}: {exc}"])


def _measure_commands(results: Results, scale: works.Scale, generator: Generator) -> None:
    for loop in ("asyncio", "uvloop"):
        results.commands[loop] = Command()
    # The first start of all finds nothing in the kernel's cache of files, and does not count.
    with contextlib.suppress(BenchError):
        commands.start(Command(), "asyncio")
    for number in range(scale.rounds):
        _say(f"prefork serve, start {number + 1} of {scale.rounds}")
        for loop, command in results.commands.items():
            commands.start(command, loop)
    for loop, command in results.commands.items():
        commands.weigh(command, loop, generator)


def _measure_redis(results: Results, scale: works.Scale, cores: Cores) -> None:
    reason = redis.why_not() or ("" if scale.redis_requests else "not part of a quick run")
    if reason:
        _leave_out(results, [f"redis-benchmark: {reason}"])
    else:
        redis.measure(results, scale.rounds, scale.redis_requests, cores.server, cores.generator, _say)


@functools.cache
def _line() -> ProgressLine:
    return ProgressLine()


def _say(what: str, done: int = 0, total: int = 0) -> None:
    """Show where the run is: one line with a bar on a terminal, lines elsewhere."""
    _line().update(done, total, what)


if __name__ == "__main__":
    sys.exit(main())
