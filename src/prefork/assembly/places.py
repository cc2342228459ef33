"""Check what settings name on this machine without using it: directories of files to be made, and descriptors.

A start finds the same when it makes the files and takes the sockets; this is for `prefork check`.
"""

from __future__ import annotations

import os

from ..addresses import FdAddress, UnixAddress
from ..checks import reject
from ..config import Settings
from ..system import paths
from ..system.socket_activation import require_listening
from ..text import escape_controls


def check_places(settings: Settings) -> None:
    """Raise ConfigError, or BindError for an address, for the first place that cannot be used by this process."""
    if settings.pidfile:
        _require_directory("--pidfile", settings.pidfile)
        _require_plain_file("--pidfile", settings.pidfile)
    if settings.control not in ("", "off"):
        _require_directory("--control", settings.control)
    if settings.access_log not in ("", "-"):
        # A file that exists needs no directory that can be written to.
        if not os.path.lexists(paths.absolute(settings.access_log)):
            _require_directory("--access-log", settings.access_log)
        _require_plain_file("--access-log", settings.access_log)
    for option, observed in (("--metrics", settings.metrics), ("--agent", settings.agent)):
        if isinstance(observed, UnixAddress):
            _require_directory(option, observed.path)
    for address in settings.bind:
        if isinstance(address, UnixAddress):
            _require_directory("--bind", address.path)
        elif isinstance(address, FdAddress):
            require_listening(address.fd)


def _require_directory(option: str, path: str) -> None:
    directory = os.path.dirname(paths.absolute(path))
    if not os.path.isdir(directory):
        problem = "is not a directory" if os.path.lexists(directory) else "does not exist; make it before the start"
        reject(option, path, f"the directory {escape_controls(directory)} {problem}")
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        reject(option, path, f"no file can be made in {escape_controls(directory)}, which this user cannot write to")


def _require_plain_file(option: str, path: str) -> None:
    absolute = paths.absolute(path)
    if os.path.lexists(absolute) and not os.path.isfile(absolute):
        reject(option, path, "it is not a regular file")
