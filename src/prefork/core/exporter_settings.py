"""What the process of `--metrics` is told when it starts: the argument of its command, as one line of JSON.

Pure: text in, values out.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

#: Seconds between two requests of the process, also if no client wants anything.
BEAT_INTERVAL = 10.0
#: Seconds without a request, after which its supervisor replaces it.
SILENCE_TIMEOUT = 3 * BEAT_INTERVAL

#: What a process that waits sends when it could serve, and what it is sent when it is to.
LOADED = b"\n"
SERVE = b"\n"


@dataclass(frozen=True, slots=True)
class ExporterSettings:
    """Descriptors that the process inherits, and the user that it becomes."""

    listeners: tuple[int, ...]
    """The descriptors of the listening sockets of --metrics."""
    agents: tuple[int, ...]
    """Those of --agent."""
    link: int
    """The descriptor of the connection to the supervisor."""
    parent: int
    """The supervisor's pid."""
    uid: int | None
    """None: the process stays the user that it is."""
    gid: int | None
    user: str
    """The name that selects supplementary groups; "" for none."""
    log_format: str
    """As --log-format."""
    waits: bool
    """Whether it says when it is loaded, and serves when it is told to."""


def encode(settings: ExporterSettings) -> str:
    return json.dumps(asdict(settings))


def decode(text: str) -> ExporterSettings:
    """Return the settings in a text. Raises ValueError or TypeError if there are none."""
    value: dict[str, Any] = json.loads(text)
    return ExporterSettings(**{**value, "listeners": tuple(value["listeners"]), "agents": tuple(value["agents"])})
