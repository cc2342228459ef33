"""A host: prefork on a node of the network, in a PID namespace of its own; what is done to it, and what it has used.

The cases decide what is done, and what it means.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefork.core.control_protocol import Request, decode_reply, encode_request
from prefork.errors import ConfigError, NotRunningError, ServiceError
from prefork.system import control_client
from soak import proc, tally
from soak.errors import HarnessError
from soak.load import ROOT

from .network import Node, Program
from .service import HOST

#: The ports of the service, of /readyz, and of the agent.
PORT, METRICS, AGENT = 9000, 9100, 9101
#: Seconds until what is done to a host has to be done; generous, because the processors are shared.
DEADLINE = 90.0
#: The first process of a host: it starts prefork, and reaps what loses its parent, as an init does.
_INIT = '"$@" & while sleep 1; do :; done'


class Host:
    """One host. `number` is what its answers carry."""

    def __init__(self, number: int, node: Node, folder: Path, options: Sequence[str], workers: int) -> None:
        self.number = number
        self.node = node
        self._folder = folder
        self._options = tuple(options)
        self._workers = workers
        self._program: Program | None = None
        self._tallies = folder / "tallies"
        self._tallies.mkdir(parents=True)

    @property
    def name(self) -> str:
        """What the balancers call it."""
        return f"host{self.number}"

    @property
    def control(self) -> str:
        """The path of its control socket."""
        return str(self._folder / "control.sock")

    # --- what is done to it -------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start prefork, and wait until its workers are ready. Raises HarnessError."""
        self.start()
        self.wait_ready()

    def start(self) -> None:
        """Start prefork with its options."""
        address = self.node.address
        command = [
            *(sys.executable, "-m", "prefork", "serve", "cluster.service:service", "--bind", f"{address}:{PORT}"),
            *("--workers", str(self._workers), "--control", self.control, "--metrics", f"{address}:{METRICS}"),
            *self._options,
        ]
        environment = {
            **os.environ,
            HOST: str(self.number),
            tally.FOLDER: str(self._tallies),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        }
        with (self._folder / "log").open("ab") as log:
            self._program = self.node.start(["sh", "-c", _INIT, "sh", *command], log, env=environment, cwd=ROOT)

    def wait_ready(self) -> None:
        """Wait until its workers are ready. Raises HarnessError."""
        self._wait(self.is_ready, "ready workers")

    def drain(self) -> None:
        """Ask prefork to stop, wait until no process of it is left, and end the host's first process."""
        command = [sys.executable, "-m", "prefork", "stop", "--control", self.control]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=DEADLINE)
        if done.returncode:
            raise HarnessError(f"{self.name}: prefork stop: {(done.stderr or done.stdout).strip()[-300:]}")
        self._wait(lambda: not self._supervised(), "the end of prefork")
        self.kill()

    def reload(self) -> None:
        """Send SIGHUP to the supervisor, and wait until the reload is done."""
        before = int(self.status()["generation"])
        self._signal(signal.SIGHUP)
        self._wait(lambda: self.is_ready() and int(self.status()["generation"]) > before, "a reload that is done")

    def upgrade(self) -> None:
        """Send SIGUSR2 to the supervisor, and wait until only its successor is there."""
        old = int(self.status()["pid"])
        outside = self._running.outside(old)
        self._signal(signal.SIGUSR2)
        self._wait(lambda: self.is_ready() and int(self.status()["pid"]) != old, "a successor that serves")
        self._wait(lambda: not proc.alive(outside), "the end of the old supervisor")

    def kill(self) -> None:
        """Kill every process of it at once. Its kernel stays, and answers with resets."""
        if self._program is not None:
            self._program.kill()
            self._program = None

    # --- what it says, and what it has used ---------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what `prefork status --json` prints. Raises HarnessError."""
        try:
            return decode_reply(control_client.request(self.control, encode_request(Request("status")), 30))
        except (ConfigError, NotRunningError, ServiceError, ValueError) as exc:
            raise HarnessError(f"{self.name}: status: {exc}; it logged:\n{self.tail()}") from exc

    def is_ready(self) -> bool:
        """Return whether all its workers are ready, and no reload runs."""
        try:
            status = self.status()
        except HarnessError:
            # It begins, or its control socket changes hands.
            return False
        ready = [each for each in status["workers"] if each["state"] == "ready"]
        current = all(each["generation"] == status["generation"] for each in ready)
        return len(ready) == self._workers and current and not status["reloading"]

    def counts(self) -> tally.Counts:
        """Return what its workers have counted, those that are gone included."""
        return tally.total(self._tallies)

    def processor_seconds(self) -> float:
        """Return the processor time that its living processes have used, their first one excluded."""
        return sum(proc.processor_seconds(pid) for pid in self._supervised())

    def tail(self, lines: int = 20) -> str:
        """Return the end of its log."""
        return "\n".join((self._folder / "log").read_text(errors="replace").splitlines()[-lines:])

    @property
    def _running(self) -> Program:
        if self._program is None:
            raise HarnessError(f"{self.name} does not run")
        return self._program

    def _signal(self, number: int) -> None:
        os.kill(self._running.outside(int(self.status()["pid"])), number)

    def _supervised(self) -> list[int]:
        """Return the PIDs of its processes but for the first one and what that starts."""
        found = []
        for pid in self._running.members():
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
            except OSError:
                continue
            if name not in ("sh", "sleep"):
                found.append(pid)
        return found

    def _wait(self, condition: Any, what: str) -> None:
        try:
            proc.wait_until(condition, DEADLINE, f"{self.name}: {what}", 0.05)
        except HarnessError as exc:
            raise HarnessError(f"{exc}; it logged:\n{self.tail()}") from exc
