"""CPython's own tests of asyncio's streams, run against prefork's: which of them fail, and why that is right."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "cpython_streams.py"

#: Tests of what asyncio's reader is made of, which is not what a handler finds.
_INSIDE = "it looks at private attributes of asyncio's reader"
NOT_OURS = {
    "test___repr__": _INSIDE,
    "test___repr__data": _INSIDE,
    "test___repr__eof": _INSIDE,
    "test___repr__exception": _INSIDE,
    "test___repr__nondefault_limit": _INSIDE,
    "test___repr__transport": _INSIDE,
    "test___repr__waiter": _INSIDE,
    "test_read_all_from_pipe_reader": "a stream of prefork is a socket, and never a pipe",
}
_RECEIVED_FIRST = "what was received before the connection broke is read first, and lost in asyncio"
#: Differences that docs/streams.md tells.
DIFFERENT = {
    "test_read_exception": _RECEIVED_FIRST,
    "test_readexactly_exception": _RECEIVED_FIRST,
    "test_unclosed_resource_warnings": "a stream has no finalizer that warns",
    "test_unclosed_server_resource_warnings": "the server closes what a handler has forgotten",
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, str]]:
    """What became of each test, by role; "" is a success. In a process of its own, because they collect garbage."""
    if importlib.util.find_spec("test.test_asyncio") is None:
        pytest.skip("Python's own tests are not installed")
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("role", "count"), [("reader", 35), ("client", 14), ("server", 4)])
def test_only_what_differs_on_purpose_fails(outcomes: dict[str, dict[str, str]], role: str, count: int) -> None:
    ours = {name: outcome for name, outcome in outcomes[role].items() if name not in NOT_OURS}
    assert len(ours) >= count
    failed = {name: outcome for name, outcome in ours.items() if outcome and name not in DIFFERENT}
    assert not failed, "\n".join(failed.values())
    passed = [name for name in DIFFERENT if ours.get(name) == ""]
    assert not passed, f"{passed} pass: strike them from the list"
