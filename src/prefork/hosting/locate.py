"""Find a program: the file that its name stands for, in the Python that runs. Nothing of it is imported.

Before the start, so that a mistake is one line; and again in each worker, because a reload runs what is there then.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import stat
import sys

from ..checks import reject
from ..errors import ServiceError, reason_of
from ..program import Program, ProgramKind
from ..text import escape_controls

#: Bytes of the first line of a script that are looked at.
_SHEBANG_LIMIT = 512


def locate(program: Program) -> str:
    """Return the path of a file or script; for a module its name. Raises ServiceError or ConfigError."""
    if program.interpreter:
        _require_own_interpreter(program.interpreter)
    match program.kind:
        case ProgramKind.MODULE:
            _require_module(program.name)
            return program.name
        case ProgramKind.FILE:
            return _file(program.name)
    return _script(program.name)


def _require_own_interpreter(text: str) -> None:
    """Raise ConfigError unless `text` names the Python that runs: a worker is a fork of this process."""
    version = text.rpartition("/")[2].removeprefix("python")
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version not in ("", "3", own):
        reject("PROGRAM", text, f"prefork runs in Python {own} (install it in that Python, or write python)")
    if "/" in text and not _is_own(text):
        reject("PROGRAM", text, f"prefork runs in {sys.executable} (install it in that Python, or write python)")


def _is_own(path: str) -> bool:
    try:
        # In a virtual environment the interpreter is a link: the directory tells which environment it is of.
        same = os.path.realpath(os.path.dirname(path)) == os.path.realpath(os.path.dirname(sys.executable))
        return os.path.samefile(path, sys.executable) and (same or sys.prefix == sys.base_prefix)
    except OSError:
        return False


def _require_module(name: str) -> None:
    top = name.partition(".")[0]
    # The module itself is looked up by the worker: to find a submodule its package is imported.
    here = [os.getcwd()] if not sys.flags.safe_path else []
    if top in sys.builtin_module_names or importlib.machinery.PathFinder.find_spec(top, [*here, *sys.path]) is not None:
        return
    raise ServiceError(f"program -m {name}: no module named {top!r} (looked in {os.getcwd()} and where Python looks)")


def _file(name: str) -> str:
    path = os.path.abspath(name)
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "__main__.py")):
            raise ServiceError(f"program {name}: the directory has no __main__.py")
        return path
    _require_readable(name, path)
    return path


def _script(name: str) -> str:
    own = os.path.dirname(sys.executable)
    path = shutil.which(name, path=os.pathsep.join([own, os.environ.get("PATH", os.defpath)]))
    if path is None:
        if os.path.exists(name):
            return _file(name)
        raise ServiceError(f"program {name}: no such file, and no script of that name in {own} or in PATH")
    _require_readable(name, path)
    with open(path, "rb") as file:
        first = file.readline(_SHEBANG_LIMIT)
    if not first.startswith(b"#!") or (b"python" not in first and b"/bin/sh" not in first):
        raise ServiceError(
            f"program {name}: {path} is not a Python program (prefork run runs Python programs, in its own Python)"
        )
    return path


def _require_readable(name: str, path: str) -> None:
    shown = f"program {escape_controls(name)}: {escape_controls(path)}"
    try:
        # Not by opening it, which would wait for the writer of a named pipe.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ServiceError(f"{shown}: is not a file")
    except OSError as exc:
        raise ServiceError(f"{shown}: {reason_of(exc)}") from None
    if not os.access(path, os.R_OK):
        raise ServiceError(f"{shown}: permission denied")
