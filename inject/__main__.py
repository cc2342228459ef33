"""The command: which faults, how many, and what to do with the result. `python -m inject --help` says it all."""

from __future__ import annotations

import argparse
import ctypes
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from soak.errors import HarnessError
from soak.report import machine

from . import report
from .cases import Case, Role, all_cases, eligible, sample
from .report import Result
from .scenario import DEADLINE, ROOT, Run
from .verdict import Failure, Good, Observed, judge

DOCUMENT = ROOT / "docs" / "faults.md"
#: Exit statuses: a failure was seen, options that are wrong (as argparse has it), nothing could be measured, Ctrl-C.
BAD, USAGE, BLIND, INTERRUPTED = 1, 2, 3, 130
#: What the server that does everything wrong must be told.
SEEN = {Failure.TRACEBACK, Failure.BUG, Failure.DEAF, Failure.TRUNCATED, Failure.ORPHAN, Failure.FILE}
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: Sequence[str]) -> int:
    """Run; the exit status is 0 only if nothing failed."""
    options = _parse(arguments)
    if shutil.which("strace") is None:
        sys.stderr.write("inject: NOTHING WAS MEASURED: strace is not installed (scripts/install-debian-packages)\n")
        return BLIND
    # A harness that is told to end has servers to end first.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # A supervisor that another one has started is ours when that one has gone: its exit status is to be seen.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        if options.write:
            report.check(DOCUMENT)
        return _run(options, arguments)
    except HarnessError as exc:
        sys.stderr.write(f"inject: NOTHING WAS MEASURED: {exc}\n")
        return BLIND
    except KeyboardInterrupt:
        sys.stderr.write("inject: interrupted; every server was ended\n")
        return INTERRUPTED


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    begun = time.monotonic()
    _say(options, machine())
    _show_that_failures_are_seen()
    roles = options.role or list(Role)
    calls = {role: _count_calls(role, number) for number, role in enumerate(roles, 1)}
    cases = all_cases(calls, options.only)
    if options.list:
        sys.stdout.write("".join(f"{case}\n" for case in cases))
        return 0
    if not cases:
        raise HarnessError(f"no call of that name is made by {', '.join(roles)}")
    chosen = sample(cases, options.scale, options.seed)
    _say(options, f"{len(chosen)} faults of {len(cases)}")
    results = _try_all(chosen, options, begun)
    seconds = time.monotonic() - begun
    sys.stdout.write("".join(f"FAILED {result}\n" for result in results if result.failed))
    sys.stdout.write(f"\n{report.table(results)}\n\n{report.summary(results, len(cases))}; {seconds:.0f} s\n")
    if options.write:
        words = shlex.join(word for word in arguments if word != "--write")
        command = f"make inject{f' INJECT_ARGS={shlex.quote(words)}' if words else ''}"
        report.write(DOCUMENT, results, len(cases), command, seconds)
    return BAD if any(result.failed for result in results) else 0


def _show_that_failures_are_seen() -> None:
    seen, _ = Run(None, None, 0).observe()
    verdict = judge(seen)
    missed = SEEN - set(verdict if isinstance(verdict, tuple) else ())
    if missed:
        raise HarnessError(f"the harness does not see in a server that has it: {', '.join(sorted(missed))}; {seen}")


def _count_calls(role: Role, number: int) -> dict[str, list[int]]:
    # All calls are traced: that takes longer than the runs that follow.
    seen, trace = Run(role, None, number, 3 * DEADLINE).observe()
    if judge(seen) is not Good.UNREACHED or not trace:
        raise HarnessError(f"{role}: without a fault it does not serve: {judge(seen)}; {seen}")
    return eligible(role, trace)


def _try_all(cases: Sequence[Case], options: argparse.Namespace, begun: float) -> list[Result]:
    """The results; what is not tried when the time is over is not among them."""
    results = []

    def attempt(number: int, case: Case) -> Result | None:
        if time.monotonic() - begun > options.minutes * 60:
            return None
        seen, _ = Run(case.role, case, number).observe()
        verdict = judge(seen)
        return Result(case, verdict, _last_words(seen) if isinstance(verdict, tuple) else "")

    with ThreadPoolExecutor(options.jobs) as pool:
        running: list[Future[Result | None]] = [pool.submit(attempt, 10 + n, case) for n, case in enumerate(cases)]
        try:
            for future in as_completed(running):
                if (result := future.result()) is not None:
                    results.append(result)
                    if result.failed:
                        _say(options, str(result))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sorted(results, key=lambda result: result.case)


def _last_words(seen: Observed) -> str:
    lines = [line for line in seen.stderr.splitlines() if line.strip()]
    parts = [f"status {seen.status}", *(f"in {step}" for step in seen.hangs), *seen.files, *lines[-1:]]
    parts += [f"{count} {end}" for end, count in (seen.early + seen.late).items() if end != "ok"]
    return "; ".join(parts).replace("|", "/")[:300]


def _say(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        os.write(2, f"inject: {text}\n".encode(errors="replace"))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m inject", description="Have every system call of the server fail, one in each run."
    )
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="the part of all faults (default: 1)")
    parser.add_argument("--only", action="append", default=[], metavar="CALL", help="this call; may be repeated")
    parser.add_argument("--role", action="append", type=Role, choices=list(Role), help="of this process; the same")
    parser.add_argument("--list", action="store_true", help="say what faults there are, and try none")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at once (2)")
    parser.add_argument("--minutes", type=float, default=90.0, metavar="M", help="begin no run after that time (90)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the sample (1)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--write", action="store_true", help="put the result into docs/faults.md")
    options = parser.parse_args(arguments)
    if not options.scale > 0 or options.jobs < 1:
        parser.error("--scale and --jobs: must be more than 0")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
