"""Tell unix sockets of one process from those of the program: nothing outside knows a path that was made up just now.

multiprocessing binds such paths, for its own children. Held for all workers they would have siblings' children, and a
successor would have to listen on a path that it never thinks of.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections.abc import Callable

_made: set[str] = set()


def install() -> None:
    """Note what `tempfile` makes up in this process, by replacing its functions for good."""
    for name in ("mkdtemp", "mktemp"):
        setattr(tempfile, name, _noting(getattr(tempfile, name)))


def is_private(path: str) -> bool:
    """Return whether an absolute path, or an abstract name, is one that only this process has thought of."""
    numbers: list[str] = re.findall(r"\d+", os.path.basename(path))
    if str(os.getpid()) in numbers:
        return True
    parts = path.split("/")
    return any("/".join(parts[:count]) in _made for count in range(2, len(parts) + 1))


def _noting(function: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(function)
    def make(*args: object, **options: object) -> str:
        path = function(*args, **options)
        _made.add(os.path.realpath(path))
        return path

    return make
