"""The compiled core and the one in pure Python give the same results for the same bytes, in random reads of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefork.implementation import native

PROGRAM = Path(__file__).parent / "episodes.py"
#: Episodes of about 11 operations; `make test-native` has more.
COUNT = int(os.environ.get("EPISODES", "90"))
SEED = int(os.environ.get("SEED", "1"))


def run(pure: bool) -> subprocess.Popen[str]:
    environment = {**os.environ, "PREFORK_PURE": "1" if pure else ""}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(SEED), str(COUNT)], stdout=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.slow
@pytest.mark.skipif(native is None, reason="there is no compiled core to compare with")
def test_random_reads_give_the_same_results() -> None:
    with run(pure=False) as compiled, run(pure=True) as pure:
        deadline = 60 + COUNT
        outputs = [process.communicate(timeout=deadline)[0].splitlines() for process in (compiled, pure)]
    assert (compiled.returncode, pure.returncode) == (0, 0)
    assert len(outputs[0]) == COUNT
    different = [lines for lines in zip(*outputs, strict=True) if lines[0] != lines[1]]
    assert not different, f"to repeat: python {PROGRAM.name} with the seed of the line"
