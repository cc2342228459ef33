"""The command: which cases, how large, and what to do with the result. `python -m cluster --help` says it all."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from soak import namespace, report
from soak.errors import HarnessError
from soak.ledger import Unbalanced
from soak.load import ROOT
from soak.options import add_common
from soak.report import Row, Verdict
from soak.scenario import Context

from . import cost, nginx, play
from .cases import CASES
from .network import network
from .stage import Stage

DOCUMENT = ROOT / "docs" / "cluster.md"
NAMES = {**{name: case.what for name, case in CASES.items()}, cost.NAME: cost.WHAT}
#: Exit statuses: a bad verdict, options that are wrong (as argparse has it), no cluster, Ctrl-C.
BAD, USAGE, NO_CLUSTER, INTERRUPTED = 1, 2, 3, 130
_PROGRAMS = ("haproxy", "nginx", "ip", "nsenter", "unshare", "setpriv")


def main(arguments: Sequence[str]) -> int:
    """Run; the exit status is 0 only if every verdict is good."""
    options = _parse(arguments)
    if options.list:
        width = max(map(len, NAMES))
        sys.stdout.write("".join(f"{name.ljust(width)}  {what}\n" for name, what in NAMES.items()))
        return 0
    if options.write:
        try:
            report.around(DOCUMENT)
        except HarnessError as exc:
            sys.stderr.write(f"cluster: --write: {exc}\n")
            return USAGE
    if not namespace.inside():
        try:
            _require()
            namespace.enter(arguments, "cluster")
        except namespace.NoNamespace as exc:
            sys.stderr.write(f"cluster: NOTHING WAS MEASURED, because there can be no cluster here: {exc}\n")
            return NO_CLUSTER
    try:
        return _run(options, arguments)
    except KeyboardInterrupt:
        sys.stderr.write("cluster: interrupted; every machine was ended\n")
        return INTERRUPTED


def _require() -> None:
    """Raise NoNamespace unless all that the cluster is made of is there."""
    if os.geteuid():
        raise namespace.NoNamespace("it needs root, for network devices and namespaces")
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    missing += [] if nginx.MODULE.exists() else [str(nginx.MODULE)]
    if missing:
        raise namespace.NoNamespace(f"missing: {', '.join(missing)} (scripts/install-debian-packages installs them)")


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    # A harness that is told to end has machines to end first.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        context = Context(Path(folder), options.scale, options.rate, 1, options.seed, name="cluster")
        context.stay, context.quiet = options.stay, options.quiet
        context.say(f"{report.machine()}; scale {context.scale:g}, {context.rate:g} connections a second")
        namespace.furnish()
        rows = _measure(context, options.cases or list(NAMES))
    seconds = time.monotonic() - begun
    for row in rows:
        sys.stdout.write("".join(f"{row.scenario}: {line}\n" for line in row.details))
    sys.stdout.write(f"\n{report.table(rows)}\n\n{report.machine()}; {seconds:.0f} s\n")
    if options.write:
        words = [word for word in arguments if word != "--write"]
        command = f"make cluster{f' CLUSTER_ARGS={shlex.quote(shlex.join(words))}' if words else ''}"
        # Of some cases only theirs: the row of the peer is of all cases, and the control has run before.
        wanted = [row for row in rows if not options.cases or row.scenario in options.cases]
        report.write(DOCUMENT, wanted, command, seconds)
    return 0 if all(row.passed for row in rows) else BAD


def _measure(context: Context, names: Sequence[str]) -> list[Row]:
    """Return the rows of all cases; the first control goes first, and what is blind measures nothing else."""
    rows: list[Row] = []
    peers = play.Peers()
    control = next(iter(CASES))
    ordered = [control, *(name for name in names if name != control)]
    with network() as net:
        stage = Stage(context, net)
        for position, name in enumerate(ordered):
            context.progress(position, len(ordered), name)
            begun = time.monotonic()
            row = _row(stage, name, peers)
            rows.append(row)
            context.say(f"{name}: {row.figure}: {row.verdict} ({time.monotonic() - begun:.0f} s)")
            if name == control and not row.passed:
                context.say("the control sees no loss where loss is certain: nothing else would mean anything")
                break
        if peers.answers:
            rows.append(play.peer_row(peers))
    context.close()
    return rows


def _row(stage: Stage, name: str, peers: play.Peers) -> Row:
    try:
        return cost.play(stage) if name == cost.NAME else play.play(stage, name, CASES[name], peers)
    except (HarnessError, Unbalanced) as exc:
        details = tuple(str(exc).split("\n"))
        return Row(name, NAMES[name], "could not be measured", 0, "", Verdict.BLIND, details=details)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cluster", description="Show what hosts behind a balancer lose.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="which ones; all without any")
    parser.add_argument("--list", action="store_true", help="say what cases there are")
    add_common(parser, 100.0, "docs/cluster.md")
    options = parser.parse_args(arguments)
    for name in options.cases:
        if name not in NAMES:
            parser.error(f"no case {name!r}; there are {', '.join(NAMES)}")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
