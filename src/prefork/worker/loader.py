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
import sysconfig
import traceback
from types import ModuleType, TracebackType

from ..errors import ServiceError
from ..text import escape_controls, text_of

#: The longest reason that is passed on, in characters.
_REASON_LIMIT = 500


def load(target: str) -> object:
    """The object that `module:attribute` or `path/to/file.py:attribute` names; the current directory is importable.

    Raises ServiceError, in one line, for a target that is none, a module that cannot be found or raises, and a missing
    attribute.
    """
    place, colon, path = target.rpartition(":")
    is_file = place.endswith(".py") or os.sep in place
    if not colon or not place or not path or not (is_file or all(map(str.isidentifier, place.split(".")))):
        raise ServiceError(
            f"service {target}: expected module:attribute or path/to/file.py:attribute, as in echo:handle"
        )
    try:
        _make_importable(os.getcwd())
    except OSError as exc:
        raise ServiceError(f"service {target}: the current folder is gone ({exc.strerror or exc})") from None
    module = _load_file(target, place) if is_file else _load_module(target, place)
    return _find(target, module, place, path)


def _make_importable(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _find(target: str, module: ModuleType, place: str, path: str) -> object:
    found: object = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            near = difflib.get_close_matches(name, dir(found), 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            owner = f"module {place!r}" if found is module else repr(type(found).__name__)
            raise ServiceError(f"service {target}: {owner} has no attribute {name!r}{hint}") from None
        except BaseException as exc:
            raise ServiceError(f"service {target}: {explain(exc)}") from exc
    return found


def _load_module(target: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(exc.name + ".")):
            raise ServiceError(
                f"service {target}: no module named {exc.name!r} (looked in {os.getcwd()} and where Python looks)"
            ) from None
        raise ServiceError(f"service {target}: {explain(exc)}") from exc
    except BaseException as exc:
        raise ServiceError(f"service {target}: {explain(exc)}") from exc


def _load_file(target: str, place: str) -> ModuleType:
    path = os.path.abspath(place)
    if not os.path.isfile(path):
        reason = "is not a file" if os.path.exists(path) else "no such file"
        raise ServiceError(f"service {target}: {path}: {reason}")
    name = os.path.splitext(os.path.basename(path))[0]
    if name in sys.modules or name in sys.stdlib_module_names:
        # A service called signal.py must not become everybody's `signal`.
        name = f"_service_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ServiceError(f"service {target}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Its neighbours are importable, as when it is run as a script; and it itself, for pickle and dataclasses.
    _make_importable(os.path.dirname(path))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as exc:
        raise ServiceError(f"service {target}: {explain(exc)}") from exc
    return module


def explain(exc: BaseException) -> str:
    """What the service's own code raised, and where, in one line."""
    text = text_of(exc).strip().splitlines()
    what = escape_controls(f"{type(exc).__name__}: {text[0]}" if text else type(exc).__name__, _REASON_LIMIT)
    if isinstance(exc, SyntaxError):
        # Its own text may name file and line, too.
        return escape_controls(f"{type(exc).__name__}: {exc.msg} ({exc.filename}, line {exc.lineno})", _REASON_LIMIT)
    where = _place(exc.__traceback__)
    return f"{what} ({where})" if where else what


def _place(tb: TracebackType | None) -> str:
    """The innermost line of the service's own code; of a library's, where the service has no part in it."""
    frames = [f for f in traceback.extract_tb(tb) if not f.filename.startswith("<frozen") and not _is_ours(f.filename)]
    libraries = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    frames = own or frames
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _is_ours(filename: str) -> bool:
    return filename.startswith(os.path.dirname(os.path.dirname(__file__)) + os.sep)
