"""The choice between the compiled core of a stream and the one in pure Python.

What takes the place of what is said where it is: in `waiter.py`, `poller.py` and `policy.py`.
"""

from __future__ import annotations

import os
from typing import Any

#: The environment variable that chooses pure Python.
PURE_VARIABLE = "PREFORK_PURE"


def _load() -> Any:
    if os.environ.get(PURE_VARIABLE):
        return None
    try:
        from .. import _native  # type: ignore[attr-defined]  # built where there is a compiler
    except ImportError:
        return None
    return _native


#: The extension module, or None if streams are in pure Python.
native = _load()
