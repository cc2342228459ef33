"""Find the running servers of this user, and say which one a command means.

How one is asked is in `remote.py`, where the sockets are in `system/control_client.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..checks import reject
from ..core.control_protocol import Request, decode_reply, encode_request
from ..errors import ConfigError, ExitCode, PreforkError
from ..text import escape_controls
from .sources import Sources

#: Seconds that one server, and all of them together, have to say what they serve.
_TIMEOUT, _TOTAL_TIMEOUT = 0.5, 2.0


@dataclass(frozen=True, slots=True)
class RunningServer:
    """What `prefork list` shows of a server."""

    control: str
    pid: int | None = None
    """None, and no more is known: it did not answer."""
    state: str = "does not answer"
    target: str = ""
    listeners: tuple[str, ...] = ()

    def describe(self) -> str:
        parts = [f"--control {escape_controls(self.control)}"]
        parts += [] if self.pid is None else [f"pid {self.pid}"]
        return "  ".join(part for part in (*parts, self.state, self.target, ", ".join(self.listeners)) if part)


class SeveralServersError(ConfigError):
    """Raised when a command could mean any of several servers; `lines()` has one for each of them."""

    def __init__(self, servers: Sequence[RunningServer]) -> None:
        super().__init__("several servers run; choose one by --control PATH")
        self.servers = tuple(servers)

    def lines(self) -> list[str]:
        return [f"{self}:", *(f"    {each.describe()}" for each in self.servers)]


def find_socket(control: str) -> str:
    """Return the control socket that `--control`, the settings, or the only running server name.

    Raises NotRunningError if no server runs, SeveralServersError if it could be any of several, and ConfigError if the
    settings say that there is none, or cannot be trusted.
    """
    from ..system import control_client

    if control == "off":
        reject("--control", control, "name the socket of a running server; one that was started with off has none")
    sources = Sources({})
    named = control or sources.control()
    if named == "off":
        origin = sources.origin_of("--control")
        cure = "name that of another server by --control PATH"
        raise ConfigError(f"--control off (in {origin}): the server of these settings has no control socket; {cure}")
    if named:
        return named
    try:
        living = control_client.find_sockets()
    except ConfigError as exc:
        # The wrong file may name the socket. But a server that is found is asked whatever the file says now.
        raise sources.problem or exc from None
    if len(living) > 1:
        raise SeveralServersError(_ask_all(living))
    return living[0]


def list_servers(as_json: bool) -> tuple[str, int]:
    """Return the running servers that have a socket where it is looked for, one a line, and the exit code."""
    from ..system import control_client

    servers = _ask_all(control_client.find_sockets())
    if as_json:
        return json.dumps({"ok": True, "servers": [asdict(each) for each in servers]}), 0
    return "\n".join(each.describe() for each in servers), 0


def failure_of(exc: PreforkError) -> dict[str, object]:
    """Return a failure as `--json` prints it."""
    reply: dict[str, object] = {"ok": False, "error": str(exc)}
    if isinstance(exc, SeveralServersError):
        return {**reply, "running": True, "servers": [asdict(each) for each in exc.servers]}
    return {**reply, "running": False} if exc.exit_code == ExitCode.NOT_RUNNING else reply


def _ask_all(sockets: Sequence[str]) -> list[RunningServer]:
    end = time.monotonic() + _TOTAL_TIMEOUT
    return [_ask(path, min(_TIMEOUT, max(0.01, end - time.monotonic()))) for path in sockets]


def _ask(path: str, timeout: float) -> RunningServer:
    from ..system import control_client

    try:
        told = decode_reply(control_client.request(path, encode_request(Request("status")), timeout))
        return RunningServer(
            path, int(told["pid"]), str(told["state"]), str(told.get("target", "")), tuple(map(str, told["listeners"]))
        )
    except (PreforkError, ValueError, KeyError, TypeError):
        return RunningServer(path)
