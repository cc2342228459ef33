"""Have the code of a service compiled from its sources and never taken from `.pyc` files, for `--reload`.

Python takes a `.pyc` file for current if the source has the same size and the same modification time in seconds. So of
two edits within a second a worker could run the first. Installed code and the standard library keep their `.pyc` files,
because compiling a large dependency takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import PurePath
from typing import Any

_LIBRARY = os.path.dirname(os.__file__)
_INSTALLED = {"site-packages", "dist-packages"}
_path_stats = SourceFileLoader.path_stats


def install() -> None:
    """Have all modules of this process that are imported from now on loaded so.

    In the loader of all source files, because a finder of our own would miss modules that others find: the finders of
    editable installs, and code that loads a file by its path.
    """
    SourceFileLoader.path_stats = _path_stats_of_installed  # type: ignore[method-assign]  # for modules of any finder


def is_installed(path: str) -> bool:
    """Return whether `path` is in Python's library, or among packages that pip or a distribution has installed."""
    pure = PurePath(path)
    return not _INSTALLED.isdisjoint(pure.parts) or pure.is_relative_to(_LIBRARY)


def _path_stats_of_installed(self: SourceFileLoader, path: str) -> Mapping[str, Any]:
    """Raise OSError for other code: without its time, a `.pyc` file is neither read nor written (importlib.abc)."""
    if is_installed(path):
        return _path_stats(self, path)
    raise OSError(f"no .pyc file is used for {path}")
