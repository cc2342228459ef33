"""Where this program takes code from: what Python, the dynamic linker and OpenSSL load, now and when it starts again.

Knows names alone. Each has a word for where it comes from. What becomes of them is in `trust.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..system import paths

#: A word and a path.
Named = tuple[str, str]

_CODE = "the code of prefork"
#: What Python loads of a folder: modules, packages, and paths and code in .pth files (site).
_LOADED = (".py", ".pyc", ".pth", ".so", ".zip")
#: Variables that say where the dynamic linker (ld.so(8)), iconv(3) and OpenSSL (openssl-env(7)) load code from.
_VARIABLES = (
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT", "GCONV_PATH"),
    *("OPENSSL_CONF", "OPENSSL_ENGINES", "OPENSSL_MODULES"),
)


def ways() -> Iterator[Named]:
    """Programs, and folders that code is loaded from: each of them, and the way to it, must be trusted."""
    yield from _environment()
    if sys.pycache_prefix:
        yield "PYTHONPYCACHEPREFIX", paths.absolute(sys.pycache_prefix)
    site = sys.modules.get("site")
    if site is not None and site.ENABLE_USER_SITE:
        # It is looked for at each start, and may be made meanwhile where HOME is another user's.
        yield "the user's folder of Python (PYTHONNOUSERSITE=1 does without)", site.getusersitepackages()
    for path in (*_programs(), *_folders(), *_folders_of((*_loaded(), *_mapped()))):
        yield _CODE, path


def files() -> Iterator[Named]:
    """Files and folders in those folders. The way to one is looked at only where it is a link."""
    known = {*sys.stdlib_module_names, *(name.partition(".")[0] for name in sys.modules)}
    importable = dict.fromkeys(_folders())
    for folder in (*importable, *_folders_of(_loaded())):
        for path in _entries(folder, known if folder in importable else ()):
            yield _CODE, path
    for path in (*_mapped(), os.path.join(sys.prefix, "pyvenv.cfg")):
        yield _CODE, path


def _programs() -> Iterator[str]:
    if sys.executable:
        yield sys.executable
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main:
        yield main
    # As it was named: the successor of an upgrade looks from the folder in which this process was started.
    script = sys.orig_argv[-len(sys.argv)] if sys.argv else ""
    if script and script == sys.argv[0] and not script.startswith("-"):
        yield paths.absolute(script)


def _folders() -> Iterator[str]:
    yield from {sys.prefix, sys.exec_prefix, sys.base_prefix, str(Path(__file__).parents[1])}
    yield from (paths.absolute(entry) for entry in sys.path)


def _folders_of(found: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(map(os.path.dirname, found))


def _loaded() -> Iterator[str]:
    for module in list(sys.modules.values()):
        for name in ("__file__", "__cached__"):
            file = getattr(module, name, None)
            if isinstance(file, str) and os.path.isabs(file):
                yield file


def _mapped() -> list[str]:
    """Shared libraries and programs that this process has mapped (proc(5))."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
        fields = (line.split(maxsplit=5) for line in lines)
        return list({each[5]: None for each in fields if len(each) == 6 and _is_library(each[1], each[5])})
    return []


def _is_library(rights: str, path: str) -> bool:
    """Not what has no name any more, such as the memory that libffi makes code in."""
    return "x" in rights and path.startswith("/") and not path.endswith(" (deleted)")


def _entries(folder: str, packages: Iterable[str]) -> Iterator[str]:
    """What may be loaded of a folder. Of its own folders those with the name of a package that something imports:
    another one, such as data/ beside a program, is not looked into."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(_LOADED) or entry.name in packages or entry.name == "__pycache__":
                yield entry.path


def _environment() -> Iterator[Named]:
    for name in _VARIABLES:
        text = os.environ.get(name, "")
        if not text:
            continue
        for entry in (
            [text] if name.startswith("OPENSSL") else re.split("[:;]" if name != "LD_PRELOAD" else "[: ]", text)
        ):
            # $ORIGIN is beside a program, which is trusted itself; a bare name in LD_PRELOAD is searched for.
            if entry.startswith("$") or (name == "LD_PRELOAD" and "/" not in entry):
                continue
            # An empty one is the current folder.
            yield name, paths.absolute(entry or ".")
