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


def _load() -> tuple[Any, str]:
    """Return the extension module and "", or None and why it is not used."""
    if os.environ.get(PURE_VARIABLE, "") not in ("", "0"):
        return None, PURE_VARIABLE
    try:
        module = importlib.import_module("prefork._native")
    except ModuleNotFoundError:
        return None, "installed without a C compiler"
    except ImportError as exc:
        return None, str(exc)
    if __version__ != module.VERSION:
        return None, f"the extension is of version {module.VERSION}"
    return module, ""


native, _reason = _load()
"""The extension module, or None if streams are in pure Python."""


def describe_core() -> str:
    """Return which core streams have: `compiled`, or `pure Python` with the reason."""
    return "compiled" if native is not None else f"pure Python ({_reason})"
