"""The fault harness in small, so that it cannot rot: what it judges, what it counts, and that it sees a failure."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.support import need, need_root
from hypothesis import given
from hypothesis import strategies as st

from inject import report
from inject.cases import MOST_POSITIONS, Case, Role, all_cases, eligible, positions, sample
from inject.errnos import ERRORS, EXEMPT
from inject.report import Result
from inject.verdict import Failure, Good, Observed, judge
from soak.errors import HarnessError
from soak.ledger import Bin

ROOT = Path(__file__).parents[2]
WELL = Observed(True, True, 0, "ready: 2 workers\n", early=Counter({Bin.OK: 50}), late=Counter({Bin.OK: 10}))
ENDED = Observed(True, False, 3, "prefork: the server cannot start: out of memory\n")

# --- the verdict ------------------------------------------------------------------------------------------------------


def test_good_outcomes_pass() -> None:
    assert judge(WELL) is Good.SERVED
    assert judge(ENDED) is Good.ENDED
    assert judge(replace(WELL, injected=False)) is Good.UNREACHED
    assert judge(replace(WELL, early=Counter({Bin.RESET_AFTER: 1, Bin.OK: 49}), excused=True)) is Good.SERVED


@pytest.mark.parametrize(
    ("seen", "failure"),
    [
        (replace(WELL, stderr="Traceback (most recent call last):\n"), Failure.TRACEBACK),
        (replace(ENDED, stderr="Fatal Python error: none\nprefork: x\n"), Failure.TRACEBACK),
        (replace(ENDED, status=70), Failure.BUG),
        (replace(ENDED, status=1), Failure.STATUS),
        (replace(ENDED, status=-11), Failure.STATUS),
        (replace(ENDED, status=0), Failure.BY_ITSELF),
        (replace(ENDED, stderr=""), Failure.LINES),
        (replace(ENDED, stderr="prefork: a\nprefork: b\n"), Failure.LINES),
        (replace(WELL, hangs=("reload",)), Failure.HANG),
        (replace(WELL, status=None), Failure.HANG),
        (replace(WELL, early=Counter({Bin.READ_TIMEOUT: 1})), Failure.HANG),
        (replace(WELL, late=Counter({Bin.OK: 9, Bin.REFUSED: 1}), excused=True), Failure.DEAF),
        (replace(WELL, early=Counter({Bin.RESET_BEFORE: 1})), Failure.LOST),
        (replace(WELL, early=Counter({Bin.EARLY_END: 1}), excused=True), Failure.TRUNCATED),
        (replace(WELL, early=Counter({Bin.WRONG: 1}), excused=True), Failure.TRUNCATED),
        (replace(ENDED, orphans=(7,)), Failure.ORPHAN),
        (replace(ENDED, files=("pid",)), Failure.FILE),
    ],
)
def test_bad_outcomes_fail(seen: Observed, failure: Failure) -> None:
    assert judge(seen) == (failure,)
    # Also where the fault was not reached: it was seen all the same.
    assert judge(replace(seen, injected=False)) == (failure,)


# --- the cases --------------------------------------------------------------------------------------------------------

TRACE = [
    'execve("/usr/bin/python", ["python"], 0x7f /* 1 var */) = 0',
    "newfstatat(0, ...) = 0",
    'openat(AT_FDCWD, "/x/cli/__pycache__/main.cpython-313.pyc", O_RDONLY|O_CLOEXEC) = 3',
    "read(3, ...) = 100",
    'newfstatat(0, "", {st_mode=S_IFCHR|0666}, AT_EMPTY_PATH) = 0',
    "--- SIGCHLD {si_signo=SIGCHLD} ---",
    "read(3, ...) = 100",
    "listen(3, 128) = 0",
]


def test_calls_of_pythons_own_start_are_left_out() -> None:
    assert eligible(Role.SUPERVISOR, TRACE) == {"newfstatat": [2], "read": [2], "listen": [1]}
    before = ["listen(4, 1) = 0", *TRACE]
    assert eligible(Role.SUCCESSOR, before) == {
        "listen": [1, 2],
        "execve": [1],
        "newfstatat": [2],
        "read": [2],
    }
    assert eligible(Role.WORKER, TRACE)["read"] == [1, 2]


@given(st.integers(0, 500), st.integers(3, MOST_POSITIONS))
def test_positions_are_spread(count: int, most: int) -> None:
    numbers = list(range(1, count + 1))
    chosen = positions(numbers, most)
    assert len(chosen) == min(count, most) == len(set(chosen))
    assert chosen == sorted(chosen)
    assert chosen[:2] == numbers[:2]
    assert chosen[-1:] == numbers[-1:]


@given(st.floats(0.001, 1.0), st.integers(0, 5))
def test_a_sample_tries_every_call_first(scale: float, seed: int) -> None:
    cases = all_cases({Role.WORKER: {"read": [1, 2, 3], "poll": [4]}, Role.SUPERVISOR: {"read": [9], "close": [1]}})
    chosen = sample(cases, scale, seed)
    assert len(chosen) == max(1, round(len(cases) * scale)) == len(set(chosen))
    groups = {(case.role, case.call) for case in cases}
    assert len({(case.role, case.call) for case in chosen[: len(groups)]}) == min(len(chosen), len(groups))
    assert chosen == sample(reversed(cases), scale, seed)


def test_the_table_names_only_errnos_that_exist() -> None:
    for errors in ERRORS.values():
        assert all(hasattr(errno, name) for name in errors.split())
    assert not EXEMPT.keys() & ERRORS.keys()


# --- the report -------------------------------------------------------------------------------------------------------


def test_a_result_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    results = [
        Result(Case(Role.WORKER, "read", "EIO", 1), Good.SERVED),
        Result(Case(Role.WORKER, "read", "EINTR", 1), (Failure.HANG,), "the last line"),
    ]
    document = tmp_path / "faults.md"
    document.write_text(f"before\n{report._BEGIN}\nold\n{report._END}\nafter\n")
    report.write(document, results, 40, "make inject", 90)
    text = document.read_text()
    assert "| worker | read | EINTR EIO | 2 | 1 | 0 | 0 | 1 |" in text
    assert "* worker: read EINTR, call 1: hang (the last line)" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    (tmp_path / "none.md").write_text("")
    with pytest.raises(HarnessError):
        report.check(tmp_path / "none.md")


# --- the harness itself -----------------------------------------------------------------------------------------------


def harness(*options: str) -> subprocess.CompletedProcess[str]:
    need("strace")
    need_root()
    return subprocess.run(
        [sys.executable, "-m", "inject", *options], cwd=ROOT, capture_output=True, text=True, timeout=100
    )


def test_a_run_with_a_few_faults_passes() -> None:
    """That a server that does everything wrong is seen to, the harness shows before each run."""
    done = harness("--only", "memfd_create", "--role", "supervisor", "--scale", "0.001")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 faults of " in done.stdout
    assert "1 served" in done.stdout


def test_a_harness_that_misses_a_bad_server_stops() -> None:
    code = (
        "import sys, inject.__main__ as command, inject.verdict as verdict\n"
        "command.judge = lambda seen: verdict.Good.SERVED\n"
        "sys.exit(command.main(['--only', 'poll']))"
    )
    need("strace")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "NOTHING WAS MEASURED: the harness does not see" in done.stderr
