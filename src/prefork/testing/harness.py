"""`run_server` and `run_program`: run the real command in a process of its own, for tests of services.

Standard library only, no test framework. Whatever happens in the block, no process of the server survives it.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import IO

_LISTENING = re.compile(r"listening on (\S+) \(")


class Server:
    """A running `prefork serve` or `prefork run`, as `run_server` and `run_program` yield it."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """The process id of the supervisor."""
        return self._process.pid

    @property
    def addresses(self) -> list[str]:
        """The addresses that it listens on, as it logs them: `127.0.0.1:9000`, `[::1]:9000`, `unix:/path`."""
        return _LISTENING.findall(self.stderr())

    @property
    def port(self) -> int:
        """The port of the first TCP address. Raises LookupError if there is none."""
        for address in self.addresses:
            if not address.startswith("unix:"):
                return int(address.rpartition(":")[2])
        raise LookupError(f"no TCP address among {self.addresses}")

    def stderr(self) -> str:
        """Return everything that it has logged so far."""
        return Path(self._log.name).read_text(errors="replace")

    def worker_pids(self) -> list[int]:
        """Return the process ids of the living workers.

        A worker is a child of the supervisor that leads a process group. Other children are adopted orphans.
        """
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        stats = {int(pid): _stat(int(pid)) for pid in text.split()}
        return [pid for pid, stat in stats.items() if stat[:1] not in ([], ["Z"]) and stat[2:3] == [str(pid)]]

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor only."""
        self._process.send_signal(number)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for its end and return the exit status. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        return self._process.wait(timeout)

    def stop(self, number: int = SIGTERM, timeout: float = 30.0) -> int:
        """Send a signal to the supervisor, then `wait`."""
        self.signal(number)
        return self.wait(timeout)


@contextlib.contextmanager
def run_server(
    target: str,
    *options: str,
    bind: str | Sequence[str] = "127.0.0.1:0",
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    wait_ready: bool = True,
    timeout: float = 30.0,
) -> Iterator[Server]:
    """Run `prefork serve TARGET OPTIONS` for the block, by default on a free port of 127.0.0.1, and wait until ready.

    `prefix` is a command to run it under. `wait_ready=False` does not wait. Raises RuntimeError, with what was logged,
    if it ends or is not ready within `timeout` seconds. At the end of the block every process of it is killed.
    """
    addresses = [bind] if isinstance(bind, str) else bind
    words = [target, *(part for address in addresses for part in ("--bind", address)), *options]
    with _running("serve", words, cwd, env, prefix, wait_ready, timeout) as server:
        yield server


@contextlib.contextmanager
def run_program(
    *program: str,
    options: Sequence[str] = (),
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    wait_ready: bool = True,
    timeout: float = 30.0,
) -> Iterator[Server]:
    """Run `prefork run OPTIONS -- PROGRAM` for the block, and wait until ready.

    `program` is its words: a file, or `-m` and a module, then its arguments. The rest is as for `run_server`.
    """
    with _running("run", [*options, "--", *program], cwd, env, prefix, wait_ready, timeout) as server:
        yield server


@contextlib.contextmanager
def _running(
    subcommand: str,
    words: Sequence[str],
    cwd: str | os.PathLike[str] | None,
    env: Mapping[str, str] | None,
    prefix: Sequence[str],
    wait_ready: bool,
    timeout: float,
) -> Iterator[Server]:
    ready, writer = os.pipe()
    with tempfile.NamedTemporaryFile(prefix="prefork-log-") as log, contextlib.ExitStack() as stack:
        stack.callback(os.close, ready)
        try:
            process = subprocess.Popen(
                [
                    *prefix,
                    *(sys.executable, "-m", "prefork", subcommand, "--ready-fd", str(writer)),
                    # Otherwise a server that is killed leaves its control socket in the user's directory.
                    *(() if "--control" in words else ("--control", "off")),
                    *words,
                ],
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                pass_fds=(writer,),
                start_new_session=True,
            )
        finally:
            os.close(writer)
        stack.callback(_kill_session, process)
        server = Server(process, log)
        if wait_ready:
            _await_ready(server, ready, time.monotonic() + timeout)
        yield server


def _await_ready(server: Server, ready: int, end: float) -> None:
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
        raise RuntimeError(f"the server was not ready in time; it logged:\n{server.stderr()}")
    if os.read(ready, 16) != b"READY\n":
        # End of file on the pipe comes a moment before the exit status.
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5)
        raise RuntimeError(f"the server ended (exit status {server._process.poll()}); it logged:\n{server.stderr()}")


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while members := _session(process.pid):
        if time.monotonic() > end:
            raise RuntimeError(f"processes survive SIGKILL: {members}")
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
        time.sleep(0.01)


def _session(leader: int) -> list[int]:
    stats = {int(entry): _stat(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()}
    return [pid for pid, stat in stats.items() if stat[:1] not in ([], ["Z"]) and stat[3:4] == [str(leader)]]


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
