"""What many tests need: real programs, root, conditions to wait for, scripts in processes of their own, strace."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.proc import session_members


def _missing(what: str) -> None:
    message = f"{what} (as root, scripts/install-debian-packages installs everything)"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def need(*programs: str) -> None:
    """Skip the test if a program is missing; with CI=true fail it, because everything must be tested there."""
    for program in programs:
        if shutil.which(program) is None:
            _missing(f"{program} is not installed")


def need_root() -> None:
    """Skip the test unless it runs as root; with CI=true fail it."""
    if os.geteuid() != 0:
        _missing("this needs root")


def slow(*values: object) -> Any:
    """Mark values of a parametrization as only for `make test-all`."""
    return pytest.param(*values, marks=pytest.mark.slow)


def rounds(few: int, many: int) -> pytest.MarkDecorator:
    """Set how often a test with random timing runs: `few` times, or `many` with `make test-all`."""
    return pytest.mark.parametrize("rounds", [few, slow(many)])


def free_port() -> int:
    """Return a port that was free a moment ago, below those that the kernel hands out to clients of other tests."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(max(1024, lowest // 2), lowest)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port


def wait_until(condition: Callable[[], object], deadline: float = 10.0, what: str = "") -> None:
    """Wait until `condition()` is true; AssertionError after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: {what or condition}")
        time.sleep(0.005)


def run_script(
    code: str | Path,
    *arguments: str,
    deadline: float = 30.0,
    prefix: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run Python code (text, or the path of a file) in a session of its own, and kill what is left of it.

    `prefix` is a command before Python's (strace, unshare). AssertionError, with what was printed, after `deadline`.
    """
    script = ["-c", textwrap.dedent(code)] if isinstance(code, str) else [str(code)]
    process = subprocess.Popen(
        [*prefix, sys.executable, "-X", "faulthandler", *script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        pass_fds=pass_fds,
    )
    try:
        out, err = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        kill_session(process.pid)
        out, err = process.communicate()
        raise AssertionError(f"still running after {deadline:g} s\n--- stdout\n{out}\n--- stderr\n{err}") from None
    finally:
        kill_session(process.pid)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_harness(module: str, *arguments: str, deadline: float) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE` of this repository in a session of its own, all of which is killed afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=deadline)
    finally:
        # Told to end it ends what it has started, which is in sessions of its own.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
        kill_session(process.pid)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def kill_session(leader: int) -> None:
    """Kill every process of the session that `leader` made, also those whose parent has gone."""
    for _ in range(100):
        members = session_members(leader)
        if not members:
            return
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


@contextlib.contextmanager
def traced(pid: int, *options: str, log: str | os.PathLike[str] = os.devnull) -> Iterator[None]:
    """Have strace attached to a process within the block, with `options`; what it sees goes to the file `log`."""
    need("strace")
    need_root()
    command = ["strace", "-qq", "-p", str(pid), "-o", os.fspath(log), *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracer:
        try:
            wait_until(lambda: "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text(), what="strace attached")
            yield
        finally:
            tracer.terminate()
