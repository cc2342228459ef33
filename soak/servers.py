"""Start prefork for a scenario, and ask it: the real command, its control socket, and the tally of its workers.

The scenarios decide what is done to the server, and what it means.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from prefork.core.control_protocol import Request, decode_reply, encode_request
from prefork.errors import ConfigError
from prefork.system import control_client
from prefork.testing import Server, run_server

from . import proc, tally
from .attempt import Target
from .errors import HarnessError
from .load import ROOT

#: Long enough for every connection of the load to end by itself.
DRAIN_TIMEOUT = 60
BACKLOG = 16384
_PATH = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files: a server's certificate and key for localhost, and the authority that made it."""

    cert: str
    key: str
    authority: str


def make_certificates(folder: Path) -> Certificates:
    """Make new certificates in `folder`."""
    made = Certificates(*(str(folder / f"{name}.pem") for name in ("cert", "key", "authority")))
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    leaf = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    leaf.private_key_pem.write_to_path(made.key)
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(made.cert, append=True)
    authority.cert_pem.write_to_path(made.authority)
    return made


@dataclass
class Fleet:
    """A running server. Made by `serving`."""

    server: Server
    folder: Path
    """Everything of it that is a file; `tmp` in it is its temporary directory."""
    unix: str = ""
    tls: bool = False

    @property
    def pid(self) -> int:
        """The supervisor's, as it was started; an upgrade makes another."""
        return self.server.pid

    @property
    def control(self) -> str:
        """The path of its control socket."""
        return str(self.folder / "control.sock")

    @property
    def tallies(self) -> Path:
        """The folder of its workers' tallies."""
        return self.folder / "tallies"

    @functools.cached_property
    def port(self) -> int:
        return self.server.port

    def targets(self) -> list[Target]:
        """Every address that it serves."""
        found = [Target(("127.0.0.1", self.port), self.tls)]
        return [*found, Target(self.unix)] if self.unix else found

    def ask(self, command: str, timeout: float = 30.0) -> dict[str, Any]:
        """Return the reply of the control socket. Raises HarnessError if none comes within `timeout` seconds."""
        try:
            return decode_reply(control_client.request(self.control, encode_request(Request(command)), timeout))
        except (ConfigError, ValueError) as exc:
            raise HarnessError(f"{command} by the control socket: {exc}; the server logged:\n{self.tail()}") from exc

    def status(self) -> dict[str, Any]:
        """What `prefork status --json` prints."""
        return self.ask("status")

    def workers(self, state: str = "ready") -> list[int]:
        """The pids of the workers in this state."""
        return [int(each["pid"]) for each in self.status()["workers"] if each["state"] == state]

    def wait_ready(self, count: int, deadline: float = 60.0) -> list[int]:
        """Wait until `count` workers are ready and there is no other; return their PIDs.

        A worker killed a moment ago may still be in the status; after `proc.kill_and_wait` it is not.
        """
        found: list[int] = []

        def are_ready() -> bool:
            found[:] = self.workers()
            return len(found) == count == len(proc.children(self.pid)) and all(map(proc.alive, found))

        proc.wait_until(are_ready, deadline, f"{count} ready workers", 0.02)
        return found

    def tally(self) -> tally.Counts:
        """What its workers have counted, those that are gone included."""
        return tally.total(self.tallies)

    def wait_idle(self, deadline: float = 30.0) -> None:
        """Until no connection is open."""
        proc.wait_until(
            lambda: not any(each["open"] for each in self.status()["workers"]), deadline, "no open ones", 0.05
        )

    def tail(self, lines: int = 20) -> str:
        """The end of its log."""
        return "\n".join(self.server.stderr().splitlines()[-lines:])


@contextlib.contextmanager
def serving(
    service: str = "soak.services.counted:service",
    *options: str,
    workers: int = 4,
    host: str = "127.0.0.1",
    port: int = 0,
    unix: bool = False,
    certificates: Certificates | None = None,
    cwd: Path = ROOT,
    wait_ready: bool = True,
) -> Iterator[Fleet]:
    """`prefork serve SERVICE`, ready unless told otherwise, on a port of `host` (0: a free one), perhaps on a unix
    socket, and over TLS if there are certificates. In the end no process and no file of it is left. Raises HarnessError
    if it does not start."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        tallies = folder / "tallies"
        tallies.mkdir()
        (folder / "tmp").mkdir()
        path = str(folder / "echo.sock") if unix else ""
        bind = [f"{host}:{port}", *([f"unix:{path}"] if unix else [])]
        given = [*("--workers", str(workers), "--control", str(folder / "control.sock"), "--backlog", str(BACKLOG))]
        for option in ("--drain-timeout", "--reload-drain-timeout"):
            # A scenario counts what it has cut off, so old workers end within its time too.
            if option not in options:
                given += [option, str(DRAIN_TIMEOUT)]
        if certificates is not None:
            given += ["--tls-cert", certificates.cert, "--tls-key", certificates.key]
        path_of_python = os.pathsep.join([str(ROOT), *_PATH])
        environment = {tally.FOLDER: str(tallies), "TMPDIR": str(folder / "tmp"), "PYTHONPATH": path_of_python}
        try:
            running = contextlib.ExitStack()
            server = running.enter_context(
                run_server(service, *given, *options, bind=bind, cwd=cwd, env=environment, wait_ready=wait_ready)
            )
        except RuntimeError as exc:
            raise HarnessError(str(exc)) from exc
        with running:
            yield Fleet(server, folder, path, certificates is not None)


@contextlib.contextmanager
def other(module: str, *words: str) -> Iterator[tuple[int, int]]:
    """`python -m soak.services.MODULE WORDS`, a server for comparison, which prints its port: its pid, and the port."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"soak.services.{module}", *words], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


# --- what this version can do -----------------------------------------------------------------------------------------


@functools.cache
def _help(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prefork", *words, "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        timeout=60,
    )
    return done.stdout


def has_option(name: str) -> bool:
    """Whether `prefork serve` knows the option."""
    return re.search(rf"{re.escape(name)}\b", _help("serve")) is not None


def has_command(name: str) -> bool:
    """Whether `prefork` knows the command."""
    return re.search(rf"^\W*{re.escape(name)}\b", _help(), re.MULTILINE) is not None


def reload(fleet: Fleet, by_signal: bool, deadline: float = 60.0) -> str:
    """Reload, by SIGHUP or by the control socket, and wait until it is done; why it failed, "" if it did not."""
    if not by_signal:
        reply = fleet.ask("reload", deadline)
        return "" if reply["ok"] else str(reply.get("error", "it says no"))
    before = int(fleet.status()["generation"])
    fleet.server.signal(signal.SIGHUP)
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        status = fleet.status()
        new = int(status["generation"])
        serving = [each for each in status["workers"] if each["state"] == "ready"]
        if new > before and not status["reloading"]:
            return "" if all(each["generation"] == new for each in serving) else "it was given up"
        time.sleep(0.01)
    return f"not done within {deadline:g} s"
