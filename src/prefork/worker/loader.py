"""Load the service: import the object that the text TARGET names, and have it classified.

Runs in a worker or in `prefork check`, never in the supervisor. See `net/handlers.py` for the kinds of services.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from pathlib import PurePath
from types import ModuleType, TracebackType

from ..config import Settings
from ..errors import ServiceError
from ..net.handlers import Handler, classify, on_asyncio_streams
from ..text import escape_controls, text_of

#: Characters of a reason that are passed on.
_REASON_LIMIT = 500


def load(target: str) -> object:
    """Import and return the object that `module:attribute` or `path/to/file.py:attribute` names.

    The current directory becomes importable. Raises ServiceError, in one line, if the text has another form, if the
    module cannot be found or raises, and if the attribute is missing.
    """
    module_text, colon, attributes = target.rpartition(":")
    is_file = bool(target_file(target))
    is_name = all(map(str.isidentifier, module_text.split(".")))
    if not (colon and module_text and attributes and (is_file or is_name)):
        raise ServiceError(
            f"service {target}: expected module:attribute or path/to/file.py:attribute, as in echo:handle"
        )
    try:
        _make_importable(os.getcwd())
    except OSError as exc:
        raise ServiceError(f"service {target}: the current directory is gone ({exc.strerror or exc})") from None
    module = _load_file(target, module_text) if is_file else _load_module(target, module_text)
    return _find_attribute(target, module, module_text, attributes)


def load_handler(target: object, settings: Settings) -> Handler:
    """Return the handler that `target` is, or that it names. Raises ServiceError, whose message names the target."""
    handler = classify(load(target), target) if isinstance(target, str) else classify(target)
    return with_streams(handler, target, settings)


def with_streams(handler: Handler, target: object, settings: Settings) -> Handler:
    """Return what serves `handler` on the streams of the settings. Raises ServiceError, which names `target`."""
    if settings.streams == "asyncio":
        return on_asyncio_streams(handler, target_name(target), settings.limits.read_limit)
    return handler


def target_file(target: str) -> str:
    """Return the path in a `target` that names a file; "" if it names a module."""
    text = target.rpartition(":")[0]
    return text if text.endswith(".py") or os.sep in text else ""


def target_name(target: object) -> str:
    """Return the text that names `target` in messages and process titles: the text itself, or the object's name."""
    return target if isinstance(target, str) else getattr(target, "__qualname__", type(target).__qualname__)


def _make_importable(directory: str) -> None:
    if directory not in sys.path:
        sys.path.insert(0, directory)


def _find_attribute(target: str, module: ModuleType, module_text: str, attributes: str) -> object:
    found: object = module
    for name in attributes.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            near = difflib.get_close_matches(name, dir(found), 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            owner = f"module {module_text!r}" if found is module else repr(type(found).__name__)
            raise ServiceError(f"service {target}: {owner} has no attribute {name!r}{hint}") from None
        except BaseException as exc:
            raise ServiceError(f"service {target}: {describe_failure(exc)}") from exc
    return found


def _load_module(target: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(exc.name + ".")):
            here = os.getcwd()
            _require_readable(target, os.path.join(here, *exc.name.split(".")), here)
            raise ServiceError(
                f"service {target}: no module named {exc.name!r} (looked in {here} and where Python looks)"
            ) from None
        raise ServiceError(f"service {target}: {describe_failure(exc)}") from exc
    except BaseException as exc:
        raise ServiceError(f"service {target}: {describe_failure(exc)}") from exc


def _load_file(target: str, file: str) -> ModuleType:
    path = os.path.abspath(file)
    if not os.path.isfile(path):
        _require_readable(target, path, path)
        reason = "is not a file" if os.path.exists(path) else "no such file"
        raise ServiceError(f"service {target}: {path}: {reason}")
    name = os.path.splitext(os.path.basename(path))[0]
    if name in sys.modules or name in sys.stdlib_module_names:
        # Otherwise a service called signal.py would replace Python's `signal` for every importer.
        name = f"_service_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ServiceError(f"service {target}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Modules beside it are importable, as when Python runs a script. The module itself too, for pickle and dataclasses.
    _make_importable(os.path.dirname(path))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as exc:
        raise ServiceError(f"service {target}: {describe_failure(exc)}") from exc
    return module


def _require_readable(target: str, path: str, listed: str) -> None:
    """Raise ServiceError if a directory above `path` cannot be searched, or, from `listed` on, cannot be listed.

    Otherwise what is in it would look as if it did not exist.
    """
    for directory in map(str, reversed(PurePath(path).parents)):
        mode = os.R_OK | os.X_OK if f"{directory}/".startswith(f"{listed}/") else os.X_OK
        if os.path.isdir(directory) and not os.access(directory, mode):
            raise ServiceError(f"service {target}: {directory}: permission denied")


def describe_failure(exc: BaseException) -> str:
    """Return in one line what the service's code raised, and where."""
    name = type(exc).__name__
    if isinstance(exc, SyntaxError):
        # Not by its text, which may name file and line already.
        return escape_controls(f"{name}: {exc.msg} ({exc.filename}, line {exc.lineno})", _REASON_LIMIT)
    lines = text_of(exc).strip().splitlines()
    what = escape_controls(f"{name}: {lines[0]}" if lines else name, _REASON_LIMIT)
    where = _innermost_line(exc.__traceback__)
    return f"{what} ({where})" if where else what


def _innermost_line(tb: TracebackType | None) -> str:
    """Return the innermost line of the service's own code, or of a library's if none of the service's is in `tb`."""
    frames = [frame for frame in traceback.extract_tb(tb) if not _is_internal(frame.filename)]
    libraries = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    frames = own or frames
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _is_internal(filename: str) -> bool:
    return filename.startswith(("<frozen", os.path.dirname(os.path.dirname(__file__)) + os.sep))
