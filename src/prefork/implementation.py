"""The choice between the compiled core of streams and the one in pure Python.

What takes the place of what is said in the files of `net`: waiter.py, poller.py, receiving.py and server_state.py.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from ._version import __version__

#: The environment variable that chooses pure Python, unless it is empty or 0.
PURE_VARIABLE = "PREFORK_PURE"
_EXTENSION = "prefork._native"


def _load() -> tuple[Any, str]:
    """Return the extension module and "", or None and why it is not used.

    Whatever is wrong with an extension, the server starts all the same, in pure Python.
    """
    if os.environ.get(PURE_VARIABLE, "") not in ("", "0"):
        return None, PURE_VARIABLE
    try:
        module = importlib.import_module(_EXTENSION)
    except ModuleNotFoundError as exc:
        return None, "no extension was built" if exc.name == _EXTENSION else _broken(exc)
    except Exception as exc:
        return None, _broken(exc)
    version = getattr(module, "VERSION", "unknown")
    return (module, "") if version == __version__ else (None, f"the extension is of version {version}")


def _broken(exc: Exception) -> str:
    return f"the extension is broken: {str(exc).partition(chr(10))[0] or type(exc).__name__}"


native, _reason = _load()
"""The extension module, or None if streams are in pure Python."""


def describe_core() -> str:
    """Return which core streams have: `compiled`, or `pure Python` with the reason."""
    return "compiled" if native is not None else f"pure Python ({_reason})"
