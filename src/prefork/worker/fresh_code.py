"""Import the service from its sources and never from `.pyc` files, for `--reload`.

Python takes a `.pyc` file for current if the source has the same size and the same modification time in seconds
(PEP 552 has the format). So of two edits within a second, a worker could run the first. Installed code and the standard
library keep their `.pyc` files, because compiling a large dependency takes seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.abc import PathEntryFinder
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import PurePath
from typing import Any

_LIBRARY = os.path.dirname(os.__file__)
_INSTALLED = {"site-packages", "dist-packages"}


class UncachedLoader(SourceFileLoader):
    """Loads a module by compiling its source."""

    def path_stats(self, path: str) -> Mapping[str, Any]:
        """Raise OSError: without the times of the source, a `.pyc` file is neither read nor written (importlib.abc)."""
        raise OSError(f"no .pyc file is used for {path}")


_find = FileFinder.path_hook(
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (UncachedLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)


def _hook(path: str) -> PathEntryFinder:
    if is_installed(path):
        raise ImportError("installed code may come from .pyc files", path=path)
    return _find(path)


def is_installed(path: str) -> bool:
    """Return whether `path` is a directory of Python's library, or of packages that pip or a distribution installed."""
    pure = PurePath(path)
    return not _INSTALLED.isdisjoint(pure.parts) or pure.is_relative_to(_LIBRARY)


def install() -> None:
    """Have all modules that are imported from now on loaded so; those that were imported stay as they are."""
    sys.path_hooks.insert(0, _hook)
    # Finders of these directories were made before, by the supervisor that this process was forked from.
    for path in [path for path in sys.path_importer_cache if not is_installed(path)]:
        del sys.path_importer_cache[path]
