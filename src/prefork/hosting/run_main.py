"""Run a program as `__main__` in this process, as Python would, and return its exit status.

Where a program is found is in `locate.py`. The process does not end here.
"""

from __future__ import annotations

import io
import os
import runpy
import sys
import threading
import types
from typing import Any

from ..program import Program, ProgramKind
from .locate import locate


def run_main(program: Program, is_ending: threading.Event) -> int:
    """Run `program` to its end. What it raises is printed as Python prints it, but for what ends a drained worker.

    `is_ending` is set once the program has been told to end. Raises ServiceError if it is not found.
    """
    target = locate(program)
    sys.orig_argv = [sys.executable, *_words(program, target), *program.arguments]
    try:
        if program.kind is ProgramKind.MODULE:
            _run_module(program)
        else:
            _run_file(target, program)
        # Python waits for the threads of a program whose main thread has ended.
        _join_threads(is_ending)
    except SystemExit as exc:
        return _exit_status(exc)
    except BaseException as exc:
        if is_ending.is_set() and _is_interrupt(exc):
            return 0
        sys.excepthook(type(exc), exc, exc.__traceback__)
        return 130 if isinstance(exc, KeyboardInterrupt) else 1
    return 0


def _is_interrupt(exc: BaseException) -> bool:
    """Return whether an exception is nothing but KeyboardInterrupt, also as a group, as trio raises it."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(KeyboardInterrupt)[1] is None
    return isinstance(exc, KeyboardInterrupt)


def _words(program: Program, target: str) -> list[str]:
    return ["-m", program.name] if program.kind is ProgramKind.MODULE else [target]


def _run_module(program: Program) -> None:
    sys.argv = ["-m", *program.arguments]
    _set_first_path(os.getcwd())
    # It sets sys.argv[0] to the file of the module.
    runpy.run_module(program.name, run_name="__main__", alter_sys=True)


def _run_file(path: str, program: Program) -> None:
    name = program.name if program.kind is ProgramKind.FILE else path
    sys.argv = [name, *program.arguments]
    if os.path.isdir(path) or path.endswith((".pyz", ".zip")):
        _drop_first_path()
        runpy.run_path(path, run_name="__main__")
        return
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    # Not by runpy, which clears the module at its end: threads and exit handlers may still use it.
    main = types.ModuleType("__main__")
    main.__file__ = name
    values: dict[str, Any] = main.__dict__
    values.update(__builtins__=__builtins__, __cached__=None, __spec__=None, __annotations__={})
    with io.open_code(path) as file:
        code = compile(file.read(), name, "exec")
    sys.modules["__main__"] = main
    exec(code, values)  # noqa: S102  # running a program is what this is for


def _set_first_path(directory: str) -> None:
    """Replace the directory of the command `prefork` by that of the program, as Python would have set it."""
    _drop_first_path()
    if not sys.flags.safe_path:
        sys.path.insert(0, directory)


def _drop_first_path() -> None:
    script = sys.modules["__main__"].__dict__.get("__file__")
    first = os.path.dirname(os.path.realpath(script)) if script else None
    if not sys.flags.safe_path and sys.path and os.path.realpath(sys.path[0] or ".") in (first, os.getcwd()):
        del sys.path[0]


def _join_threads(is_ending: threading.Event) -> None:
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            # In pieces, so that a signal's handler runs in between.
            while thread.is_alive() and not is_ending.is_set():
                thread.join(0.5)


def _exit_status(exc: SystemExit) -> int:
    if exc.code is None or isinstance(exc.code, int):
        return exc.code or 0
    print(exc.code, file=sys.stderr)  # noqa: T201  # as Python does
    return 1
