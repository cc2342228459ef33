"""See in the bytecode of a function that it returns nothing but constants, without calling it.

What follows from that is decided in `handlers.py`.
"""

from __future__ import annotations

import dis
import functools
import types
from typing import Any


def constant_result(target: Any) -> str:
    """Return `nothing`, or the constant that every call of a function returns, as text; "" if it may return more.

    Only functions written in Python are read, not what wraps them: a decorator may return what it likes.
    """
    while isinstance(target, functools.partial):
        target = target.func
    code = getattr(target, "__code__", None)
    if not isinstance(target, types.FunctionType | types.MethodType) or not isinstance(code, types.CodeType):
        return ""
    results = []
    before = None
    for each in dis.get_instructions(code):
        # Since Python 3.12 one instruction returns a constant, at least up to 3.13.
        constant = each if each.opname == "RETURN_CONST" else before
        if each.opname in ("RETURN_CONST", "RETURN_VALUE"):
            # Where another branch jumps to the return, it brings a value of its own, as in `a or None`.
            merges = each.opname == "RETURN_VALUE" and each.is_jump_target
            if merges or constant is None or constant.opname not in ("RETURN_CONST", "LOAD_CONST"):
                return ""
            results.append(constant.argval)
        before = each
    if not results:
        # It raises, and what it raises says more.
        return ""
    found = [each for each in results if each is not None]
    return repr(found[0]) if found else "nothing"
