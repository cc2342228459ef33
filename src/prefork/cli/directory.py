"""Go to the directory of `--chdir`, before anything is read or imported."""

from __future__ import annotations

import os

from ..checks import reject
from ..errors import reason_of
from ..system import handover, paths
from .options import Given

_VARIABLE = "PREFORK_CHDIR"


def enter(given: Given) -> None:
    """Go to the directory of `--chdir`, or of the variable, as if the command had been started there.

    Raises ConfigError. A successor of an upgrade stays where it is, because its predecessor went there.
    """
    named = os.environ.pop(_VARIABLE, "")
    (directory,) = given.get("chdir") or [named]
    if not directory or handover.is_pending():
        return
    try:
        logical = os.path.normpath(paths.absolute(directory))
        os.chdir(directory)
    except (OSError, ValueError) as exc:
        reject("--chdir", directory, reason_of(exc) if isinstance(exc, OSError) else str(exc))
    # As a shell does: it names the directory by its links (`paths.logical_directory`).
    os.environ["PWD"] = logical
