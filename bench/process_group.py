"""Programs that a benchmark starts, each the leader of a process group: a port before the start, and a sure end.

What is started, and how it says that it serves, belongs to each benchmark.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess


def free_port(host: str) -> int:
    """Return a TCP port of `host` on which nothing listens now."""
    with socket.create_server((host, 0)) as sock:
        return int(sock.getsockname()[1])


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a program by SIGTERM. After 5 s, or when it has ended, what is left of its group is killed."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and all of its group, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
