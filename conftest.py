"""Rules for every test: it ends in time, it leaves nothing behind, and a coroutine runs on the loop of its world."""

from __future__ import annotations

import compileall
import contextlib
import faulthandler
import gc
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import hypothesis
import pytest
from helpers import streams

import prefork

#: Seconds that any test may take; `@pytest.mark.deadline(n)` for one that is known to need more.
DEADLINE = 60.0

# For the servers that tests start. Python reuses a .pyc if size and mtime (to the second) of the source match
# (PEP 3147), so it would miss new code of the same size written within a second, as only tests write it.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


# On a busy machine an example may take any time, so only the deadline of the test holds.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "deadline(seconds): the maximum for this test")
    config.addinivalue_line("markers", "slow: takes long and rarely fails; only `make test-all` runs it")
    if not hasattr(config, "workerinput"):
        # The servers write no bytecode, so each would compile all of prefork in 0.2 s of CPU time: twice its start.
        compileall.compile_dir(Path(prefork.__file__).parent, quiet=1)
    # libuv makes a pipe with its first loop and keeps it, which would look like a leak of the first test.
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def _deadline(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail with the stacks of all threads if a test hangs."""
    marker = request.node.get_closest_marker("deadline")
    seconds = marker.args[0] if marker else DEADLINE

    def expire(_number: int, _frame: FrameType | None) -> None:
        faulthandler.dump_traceback(file=sys.__stderr__)
        pytest.fail(f"still running after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found


def _children() -> list[int]:
    text = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    return [int(pid) for pid in text.split()]


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """No descriptor, child process or thread outlives its test."""
    before = _descriptors()
    threads = set(threading.enumerate())
    kept = set(_children())
    yield
    end = time.monotonic() + 2.0
    while True:
        left = {fd: what for fd, what in _descriptors().items() if before.get(fd) != what}
        children = [pid for pid in _children() if pid not in kept]
        started = [t for t in threading.enumerate() if t not in threads]
        if not left and not children and not started:
            return
        if time.monotonic() > end:
            raise AssertionError(f"left behind: descriptors {left}, children {children}, threads {started}")
        gc.collect()
        time.sleep(0.01)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on the loop of its `world` fixture."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    arguments["world"].run(lambda: pyfuncitem.obj(**arguments))
    return True


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the paths of a server's `cert` and `key` for localhost, and of the `ca` that signed them."""
    folder = tmp_path_factory.mktemp("certs")
    ca, leaf = streams.authority()
    paths = {name: str(folder / f"{name}.pem") for name in ("cert", "key", "ca")}
    leaf.private_key_pem.write_to_path(paths["key"])
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(paths["cert"], append=True)
    ca.cert_pem.write_to_path(paths["ca"])
    return paths
