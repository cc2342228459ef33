"""Connections of every kind leave no memory behind, whatever ended them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefork.implementation import native

PROGRAM = Path(__file__).parent / "churn.py"
ROOT = Path(__file__).parents[2]
#: Connections; `make test-native` has more.
COUNT = int(os.environ.get("COUNT", "16000"))
#: Blocks that caches of Python, of asyncio and of the kernel's event list may take up, whatever the count. Of the
#: default count, one block left by each connection of one kind is 1,280.
NOISE = 1000


@pytest.mark.slow
@pytest.mark.skipif(native is None, reason="there is no compiled core")
def test_connections_of_every_kind_leave_no_memory() -> None:
    # Python's own allocator counts blocks; with PYTHONMALLOC=malloc the count is always 0.
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}", "PYTHONMALLOC": "default"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(COUNT)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60 + COUNT / 200,
    )
    assert done.returncode == 0, done.stderr
    blocks = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(blocks) == 10
    assert min(blocks) > 0, "the allocator does not count"
    assert blocks[-1] - blocks[1] < NOISE, blocks
