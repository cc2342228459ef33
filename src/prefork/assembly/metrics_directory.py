"""A fresh directory for the metrics of a program's workers, one for each start, inside PROMETHEUS_MULTIPROC_DIR.

prometheus-client keeps a file for each process there, and adds up what it finds: also what an earlier run has left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile

from ..errors import ConfigError, reason_of
from ..system.credentials import Identity
from ..system.descriptors import Descriptor
from ..text import escape_controls

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


class MetricsDirectory:
    """Owns the directory until `close`; `path` is "" if the variable is not set. Raises ConfigError."""

    def __init__(self, identity: Identity | None) -> None:
        self.path = ""
        base = os.environ.get(VARIABLE, "")
        if base:
            try:
                self.path = tempfile.mkdtemp(prefix="prefork-", dir=os.path.abspath(base))
                _give(self.path, identity)
            except OSError as exc:
                self.close()
                raise ConfigError(f"{VARIABLE} {escape_controls(base)}: {reason_of(exc)}") from None

    def close(self) -> None:
        """Remove the directory with the files in it (idempotent)."""
        path, self.path = self.path, ""
        if path:
            # It does not follow links that the workers' user may have put there (shutil.rmtree). Before Python 3.13 it
            # recurses, and that user may have made directories without end.
            with contextlib.suppress(OSError, RecursionError):
                shutil.rmtree(path)

    def variables(self) -> dict[str, str]:
        """Return what the workers' environment names."""
        return {VARIABLE: self.path} if self.path else {}


def _give(path: str, identity: Identity | None) -> None:
    """Make the workers' user the owner: by a descriptor, because that user may be able to replace the path."""
    if identity is None or os.geteuid() != 0:
        return
    with contextlib.closing(Descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW))) as directory:
        if os.fstat(directory.fileno()).st_uid == os.geteuid():
            os.fchown(directory.fileno(), identity.uid, identity.gid)
