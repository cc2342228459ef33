"""List the paths that Python, the dynamic linker and OpenSSL load code from, now and when the program starts again.

Paths only, each with the text that names its origin in a message. Whether they are trusted is decided in `trust.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..system import paths

#: The origin of a path, as a message names it, and the path.
NamedPath = tuple[str, str]

_CODE = "the code of prefork"
#: Ends of the names that Python loads from a directory: modules, and paths and code in .pth files (site).
_LOADABLE = (".py", ".pyc", ".pth", ".so", ".zip")
#: Variables that name what the dynamic linker (ld.so(8)), iconv(3) and OpenSSL (openssl-env(7)) load code from, with
#: the separators of their entries; "": one path.
_VARIABLES = {
    **dict.fromkeys(("LD_LIBRARY_PATH", "LD_AUDIT", "GCONV_PATH"), ":;"),
    "LD_PRELOAD": ": ",
    **dict.fromkeys(("OPENSSL_CONF", "OPENSSL_ENGINES", "OPENSSL_MODULES"), ""),
}


def load_paths() -> Iterator[NamedPath]:
    """Yield programs, and the directories that code is loaded from: each must be trusted, and every one above it."""
    yield from _environment()
    if sys.pycache_prefix:
        yield "PYTHONPYCACHEPREFIX", paths.absolute(sys.pycache_prefix)
    site = sys.modules.get("site")
    if site is not None and site.ENABLE_USER_SITE:
        # Python looks for it at each start, and another user may create it if HOME is that user's.
        yield "the user's directory of Python (PYTHONNOUSERSITE=1 does without)", site.getusersitepackages()
    for path in (*_programs(), *_directories(), *_directories_of((*_loaded(), *_mapped()))):
        yield _CODE, path


def loadable_files() -> Iterator[NamedPath]:
    """Yield what may be loaded from those directories: the ones above it need a check only if it is a link."""
    # prometheus_client is imported by a process that root starts (--metrics).
    known = {*sys.stdlib_module_names, "prometheus_client", *(name.partition(".")[0] for name in sys.modules)}
    importable = dict.fromkeys(_directories())
    for directory in (*importable, *_directories_of(_loaded())):
        for path in _entries(directory, known if directory in importable else ()):
            yield _CODE, path
    for path in (*_mapped(), os.path.join(sys.prefix, "pyvenv.cfg")):
        yield _CODE, path


def _programs() -> Iterator[str]:
    if sys.executable:
        yield sys.executable
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main:
        yield main
    # As it was named, because the successor of an upgrade looks it up from the directory this process was started in.
    script = sys.orig_argv[-len(sys.argv)] if sys.argv else ""
    if script and script == sys.argv[0] and not script.startswith("-"):
        yield paths.absolute(script)


def _directories() -> Iterator[str]:
    yield from {sys.prefix, sys.exec_prefix, sys.base_prefix, str(Path(__file__).parents[1])}
    yield from (paths.absolute(entry) for entry in sys.path)


def _directories_of(found: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(map(os.path.dirname, found))


def _loaded() -> Iterator[str]:
    for module in list(sys.modules.values()):
        for name in ("__file__", "__cached__"):
            file = getattr(module, name, None)
            if isinstance(file, str) and os.path.isabs(file):
                yield file


def _mapped() -> list[str]:
    """Return the shared libraries and programs that this process has mapped (proc(5))."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
        fields = (line.split(maxsplit=5) for line in lines)
        return list({each[5]: None for each in fields if len(each) == 6 and _is_library(each[1], each[5])})
    return []


def _is_library(rights: str, path: str) -> bool:
    # A deleted file has no path to check: libffi makes code in such memory.
    return "x" in rights and path.startswith("/") and not path.endswith(" (deleted)")


def _entries(directory: str, packages: Iterable[str]) -> Iterator[str]:
    """Yield what may be loaded from `directory`. A directory in it counts only if named like an imported package:
    another one holds no code, such as data/ beside a program."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(_LOADABLE) or entry.name in packages or entry.name == "__pycache__":
                yield entry.path


def _environment() -> Iterator[NamedPath]:
    for name, separators in _VARIABLES.items():
        text = os.environ.get(name, "")
        if not text:
            continue
        for entry in re.split(f"[{separators}]", text) if separators else [text]:
            # $ORIGIN is the directory of a program, which is checked itself. A bare name in LD_PRELOAD is searched for
            # in the library directories.
            if entry.startswith("$") or (name == "LD_PRELOAD" and "/" not in entry):
                continue
            # An empty entry is the current directory.
            yield name, paths.absolute(entry or ".")
