"""Finding the service: TARGET, the text that a user gave, becomes the object that it names.

Runs in a worker, or in `prefork check`; never in the supervisor. What kind of service the object is, is decided in
`net/handlers.py`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import traceback
from types import ModuleType

from ..errors import ServiceError


def load(target: str) -> object:
    """The object that `module:attribute` or `path/to/file.py:attribute` names; the current directory is importable.

    Raises ServiceError, in one line, for a target that is none, a module that cannot be found or raises, and a missing
    attribute.
    """
    place, colon, path = target.rpartition(":")
    if not colon or not place or not path:
        raise ServiceError(
            f"service {target}: expected module:attribute or path/to/file.py:attribute, as in echo:handle"
        )
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = _load_file(target, place) if place.endswith(".py") or os.sep in place else _load_module(target, place)
    found: object = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            near = difflib.get_close_matches(name, dir(found), 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            owner = f"module {place!r}" if found is module else repr(type(found).__name__)
            raise ServiceError(f"service {target}: {owner} has no attribute {name!r}{hint}") from None
    return found


def _load_module(target: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(exc.name + ".")):
            raise ServiceError(
                f"service {target}: no module named {exc.name!r} (looked in {os.getcwd()} and where Python looks)"
            ) from None
        raise ServiceError(_explain(target, exc)) from exc
    except BaseException as exc:
        raise ServiceError(_explain(target, exc)) from exc


def _load_file(target: str, place: str) -> ModuleType:
    path = os.path.abspath(place)
    if not os.path.isfile(path):
        reason = "is not a file" if os.path.exists(path) else "no such file"
        raise ServiceError(f"service {target}: {path}: {reason}")
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ServiceError(f"service {target}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Its neighbours are importable, as when it is run as a script; and it itself, for pickle and dataclasses.
    sys.path.insert(0, os.path.dirname(path))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as exc:
        raise ServiceError(_explain(target, exc)) from exc
    return module


def _explain(target: str, exc: BaseException) -> str:
    """What the service's own code raised, and where, in one line."""
    text = str(exc).splitlines()
    what = f"{type(exc).__name__}: {text[0]}" if text else type(exc).__name__
    if isinstance(exc, SyntaxError):
        return f"service {target}: {what} ({exc.filename}, line {exc.lineno})"
    frames = traceback.extract_tb(exc.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith("<frozen") and f.filename != __file__]
    theirs = [f for f in theirs if os.sep + "importlib" + os.sep not in f.filename]
    where = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    return f"service {target}: {what}{where}"
