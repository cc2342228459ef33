"""Reject settings that cannot work, before anything is made, and warn about those whose effect may surprise.

A single value is checked in `config.py`; here is what depends on the machine, or on the settings before a reload.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import time
from pathlib import Path

from ..checks import reject
from ..config import Limits, Settings, option_of
from ..errors import ConfigError, reason_of
from ..events import BacklogCapped, CertificateExpires, CertificateInvalid, Emit, NoDeadline
from ..system.certificates import examine
from ..system.tls_files import CertificatePair
from ..text import escape_controls

#: The deadlines that are off by default, and what each is about.
_DEADLINES = {"first_byte_timeout": "first byte", "idle_timeout": "silence", "max_age": "age"}
#: Settings that hold from the start to the end: a reload with another value is rejected.
_FIXED = (
    "reuse_port",
    "pidfile",
    "control",
    "user",
    "group",
    "insecure_paths",
    "leave_daemons",
    "reload",
    "ready",
    "metrics",
    "agent",
    "access_log",
)


def validate(settings: Settings, starting: bool) -> None:
    """Raise ConfigError for settings that cannot work on this machine. `starting`: check --ready-fd, too."""
    if settings.loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        raise ConfigError("--loop uvloop: uvloop is not installed (pip install 'prefork[uvloop]')", option="--loop")
    if settings.reload and importlib.util.find_spec("watchfiles") is None:
        cure = "pip install 'prefork[reload]'"
        raise ConfigError(f"--reload: watchfiles is not installed ({cure})", option="--reload")
    if settings.metrics is not None and importlib.util.find_spec("prometheus_client") is None:
        cure = "pip install 'prefork[metrics]'"
        raise ConfigError(f"--metrics: prometheus-client is not installed ({cure})", option="--metrics")
    if settings.ready_fd is not None and starting:
        _require_writable(settings.ready_fd)


def _require_writable(fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError as exc:
        reject("--ready-fd", fd, f"{reason_of(exc)} (the parent has to pass it on)")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        reject("--ready-fd", fd, "is open for reading only")


def require_unchanged(before: Settings, after: Settings) -> None:
    """Raise ConfigError if a setting differs that only a restart can change."""
    for field in _FIXED:
        if getattr(after, field) != getattr(before, field):
            option = option_of(field)
            raise ConfigError(f"{option}: cannot be changed by a reload (restart the server)", option=option)


class SettingsWarnings:
    """Warns once for each new value of a setting that has an effect which its user may not expect."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._warned_backlog = 0
        self._warned_deadlines = ""

    def check_backlog(self, backlog: int) -> None:
        """Warn if the kernel caps the queue of connections that wait to be accepted."""
        try:
            cap = int(Path("/proc/sys/net/core/somaxconn").read_text())
        except (OSError, ValueError):
            return
        if backlog > cap and backlog != self._warned_backlog:
            self._warned_backlog = backlog
            self._emit(BacklogCapped(backlog, cap))

    def check_certificate(self, pair: CertificatePair) -> None:
        """Say that a certificate is not valid, or expires soon. It is served all the same: not every client looks."""
        for each in examine(pair.cert_bytes, time.time()):
            kind = CertificateInvalid if each.is_invalid else CertificateExpires
            self._emit(kind(escape_controls(pair.cert), each.text))

    def check_deadlines(self, limits: Limits) -> None:
        """Warn if no deadline ends a connection whose peer is silent."""
        missing = [name for name in _DEADLINES if getattr(limits, name) is None]
        text = ", ".join(f"{_DEADLINES[name]} (--{name.replace('_', '-')})" for name in missing)
        if text and text != self._warned_deadlines:
            self._emit(NoDeadline(text))
        self._warned_deadlines = text
