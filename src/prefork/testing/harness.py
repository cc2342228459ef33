"""`run_server`: the real command in a process of its own, for tests of services.

Standard library alone, no test framework. Whatever happens in the block, nobody of the server stays behind.
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
    """A running `prefork serve`. Made by `run_server`."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self._process.pid

    @property
    def addresses(self) -> list[str]:
        """Where it listens, as it says: `127.0.0.1:9000`, `[::1]:9000`, `unix:/path`."""
        return _LISTENING.findall(self.stderr())

    @property
    def port(self) -> int:
        """The port of the first TCP address."""
        for address in self.addresses:
            if not address.startswith("unix:"):
                return int(address.rpartition(":")[2])
        raise LookupError(f"no TCP address among {self.addresses}")

    def stderr(self) -> str:
        """What it has logged up to now."""
        return Path(self._log.name).read_text(errors="replace")

    def worker_pids(self) -> list[int]:
        """Its living children, which lead process groups of their own: others are orphans of what workers started."""
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        stats = {int(pid): _stat(int(pid)) for pid in text.split()}
        return [pid for pid, stat in stats.items() if stat[:1] not in ([], ["Z"]) and stat[2:3] == [str(pid)]]

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self._process.send_signal(number)

    def wait(self, deadline: float = 30.0) -> int:
        """The exit status, when it has ended. subprocess.TimeoutExpired after `deadline` seconds."""
        return self._process.wait(deadline)

    def stop(self, number: int = SIGTERM, deadline: float = 30.0) -> int:
        """Send a signal, and wait for the exit status."""
        self.signal(number)
        return self.wait(deadline)


@contextlib.contextmanager
def run_server(
    target: str,
    *options: str,
    bind: Sequence[str] = ("127.0.0.1:0",),
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    wait_ready: bool = True,
    deadline: float = 30.0,
) -> Iterator[Server]:
    """`prefork serve TARGET OPTIONS`, ready to serve; by default on a free port of 127.0.0.1.

    `prefix` is a command to run it under. Raises RuntimeError, with what was logged, if it ends or is not ready within
    `deadline` seconds (`wait_ready=False` does not wait). At the end of the block every process of it is killed.
    """
    ready, told = os.pipe()
    with tempfile.NamedTemporaryFile(prefix="prefork-log-") as log, contextlib.ExitStack() as stack:
        stack.callback(os.close, ready)
        try:
            process = subprocess.Popen(
                [
                    *prefix,
                    *(sys.executable, "-m", "prefork", "serve", target, "--ready-fd", str(told)),
                    # A server that is killed would leave its socket in the user's folder.
                    *(() if "--control" in options else ("--control", "off")),
                    *(part for address in bind for part in ("--bind", address)),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                pass_fds=(told,),
                start_new_session=True,
            )
        finally:
            os.close(told)
        stack.callback(_kill_session, process)
        server = Server(process, log)
        if wait_ready:
            _await_ready(server, ready, time.monotonic() + deadline)
        yield server


def _await_ready(server: Server, ready: int, end: float) -> None:
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
        raise RuntimeError(f"the server is not ready in time; it logged:\n{server.stderr()}")
    if os.read(ready, 16) != b"READY\n":
        # The end of file comes a moment before the exit status.
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5)
        raise RuntimeError(f"the server ended (exit status {server._process.poll()}); it logged:\n{server.stderr()}")


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while members := _session(process.pid):
        if time.monotonic() > end:
            raise RuntimeError(f"processes that do not die: {members}")
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
        time.sleep(0.01)


def _session(leader: int) -> list[int]:
    members = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _state(int(entry)) not in ("Z", "") and _stat(int(entry))[3:4] == [str(leader)]:
            members.append(int(entry))
    return members


def _state(pid: int) -> str:
    return (_stat(pid) or [""])[0]


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
