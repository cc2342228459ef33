"""Tell source files from all else below a watched directory, by their paths.

Which directories are watched is decided in `assembly/watching.py`; files are read in `system/source_changes.py`.
"""

from __future__ import annotations

#: Directories without a leading dot that hold no sources: what Python and package managers have put there.
_IGNORED = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})


def is_ignored(directory: str) -> bool:
    """Return whether a directory of this name holds no sources: installed code, caches, a tool's hidden files."""
    return directory in _IGNORED or directory.startswith(".")


def is_source(path: str, below: str) -> bool:
    """Return whether `path` is a Python file below the directory `below`, and in no ignored directory there.

    Files that editors make for a moment are none: hidden ones (`.#main.py` of Emacs), and those of flycheck.
    """
    prefix = below.rstrip("/") + "/"
    if not path.startswith(prefix) or not path.endswith(".py"):
        return False
    *directories, name = path.removeprefix(prefix).split("/")
    return not name.startswith((".", "flycheck_")) and not any(map(is_ignored, directories))


def describe_changes(names: list[str]) -> str:
    """Return in one line which files changed; the first is named, the others are counted. Needs at least one name."""
    others = len(names) - 1
    if not others:
        return f"{names[0]} changed"
    return f"{names[0]} and {others} more {'file' if others == 1 else 'files'} changed"
