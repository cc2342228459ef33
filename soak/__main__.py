"""The command: which scenarios, how large, and what to do with the result. `python -m soak --help` says it all."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import namespace, report, scenarios
from .errors import HarnessError
from .ledger import Unbalanced
from .load import ROOT
from .options import add_common
from .report import Row, Verdict
from .scenario import Context

DOCUMENT = ROOT / "docs" / "soak.md"
#: Exit statuses: a bad verdict, options that are wrong (as argparse has it), no namespace, Ctrl-C.
BAD, USAGE, NO_NAMESPACE, INTERRUPTED = 1, 2, 3, 130


def main(arguments: Sequence[str]) -> int:
    """Run; the exit status is 0 only if every verdict is good."""
    options = _parse(arguments)
    if options.list:
        width = max(map(len, scenarios.NAMES))
        sys.stdout.write("".join(f"{name.ljust(width)}  {what}\n" for name, what in scenarios.NAMES.items()))
        return 0
    if options.write:
        try:
            report.around(DOCUMENT)
        except HarnessError as exc:
            # Not after an hour.
            sys.stderr.write(f"soak: --write: {exc}\n")
            return USAGE
    if not namespace.inside():
        try:
            namespace.enter(arguments)
        except namespace.NoNamespace as exc:
            sys.stderr.write(f"soak: NOTHING WAS MEASURED, as there is no network namespace to measure in: {exc}\n")
            return NO_NAMESPACE
    try:
        return _run(options, arguments)
    except KeyboardInterrupt:
        sys.stderr.write("soak: interrupted; every server was ended\n")
        return INTERRUPTED


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    # A harness that is told to end has servers to end first.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        context = Context(Path(folder), options.scale, options.rate, options.clients, options.seed)
        context.stay, context.quiet = options.stay, options.quiet
        context.say(f"{report.machine()}; scale {context.scale:g}, {context.rate:g} connections a second")
        for kept in namespace.furnish():
            context.say(f"this kernel keeps its own value of {kept}")
        rows = _measure(context, options.scenarios or list(scenarios.NAMES))
    seconds = time.monotonic() - begun
    for row in rows:
        sys.stdout.write("".join(f"{row.scenario}: {line}\n" for line in row.details))
    sys.stdout.write(f"\n{report.table(rows)}\n\n{report.machine()}; {seconds:.0f} s\n")
    if options.write:
        words = [word for word in arguments if word != "--write"]
        report.write(
            DOCUMENT, rows, f"make soak{f' SOAK_ARGS={shlex.quote(shlex.join(words))}' if words else ''}", seconds
        )
    return 0 if all(row.passed for row in rows) else BAD


def _measure(context: Context, names: Sequence[str]) -> list[Row]:
    """The rows of all scenarios; the control goes first, and what is blind measures nothing else."""
    rows: list[Row] = []
    ordered = ["control", *(name for name in names if name != "control")]
    for position, name in enumerate(ordered):
        context.progress(position, len(ordered), name)
        context.say(f"{name}: {scenarios.NAMES[name]}")
        begun = time.monotonic()
        try:
            found = scenarios.find(name)(context)
        except (HarnessError, Unbalanced) as exc:
            found = [
                Row(name, "could not be measured", "none", 0, "", Verdict.BLIND, details=tuple(str(exc).split("\n")))
            ]
        rows += found
        context.say(f"{name}: {', '.join(str(row.verdict) for row in found)} ({time.monotonic() - begun:.0f} s)")
        if name == "control" and not all(row.passed for row in found):
            context.say("the control run sees no loss where loss is certain: nothing else would mean anything")
            break
    context.close()
    return rows


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m soak", description="Prove that prefork loses no connection.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="which ones; all without any")
    parser.add_argument("--list", action="store_true", help="say what scenarios there are")
    add_common(parser, 2500.0, "docs/soak.md")
    parser.add_argument("--clients", type=int, default=2, metavar="N", help="client processes (2)")
    options = parser.parse_args(arguments)
    for name in options.scenarios:
        if name not in scenarios.NAMES:
            parser.error(f"no scenario {name!r}; there are {', '.join(scenarios.NAMES)}")
    if options.clients < 1:
        parser.error("--clients: at least one is needed")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
