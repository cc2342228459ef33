"""What the supervisor believes or runs must be out of the workers' reach: which paths that is, and the refusal.

Root that reads a file which the workers' user can change makes that user root. So with `--user` the configuration, the
certificates and all code are looked at, with the folders and links that lead to them, as sshd's StrictModes does. How a
path is looked at is in `system/paths.py`, what makes it weak in `core/trust.py`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..config import Settings
from ..core.trust import Weakness, weakness
from ..errors import UntrustedPaths
from ..events import visible
from ..system import paths
from ..system.credentials import Identity

#: Paths named in one refusal: a virtual environment of the workers' user has thousands.
MOST_PROBLEMS = 12
_CODE = "the code of prefork"
#: What Python loads of a folder of its path: modules, packages, and paths and code in .pth files (site).
_LOADED = (".py", ".pth", ".so", ".zip")


def is_needed(settings: Settings, identity: Identity | None) -> bool:
    """Whether workers are kept from something that the supervisor may do."""
    return identity is not None and identity.uid != os.geteuid() and not settings.insecure_paths


def require(files: Iterable[tuple[str, Weakness]]) -> None:
    """Raise UntrustedPaths where one of `files`, with the option that named it, or the code that runs is weak."""
    named = {each: option for option, each in (*files, *((_CODE, each) for each in _code_weaknesses()))}
    if named:
        found = list(named.items())
        problems = [_describe(option, each) for each, option in found[:MOST_PROBLEMS]]
        if len(found) > MOST_PROBLEMS:
            problems.append(f"{len(found) - MOST_PROBLEMS} more paths can be changed by others than root")
        raise UntrustedPaths(*problems)


def _describe(option: str, found: Weakness) -> str:
    return (
        f"{option}: {visible(found.path)}: {found.reason}, so a worker could become root by it; {found.cure} "
        f"{visible(shlex.quote(found.path))}, or accept it by --insecure-paths"
    )


# --- code -------------------------------------------------------------------------------------------------------------


def _code_weaknesses() -> list[Weakness]:
    """Of the interpreter, of every folder that it imports from, of what is loaded, and of the program itself."""
    folders = dict.fromkeys([*_folders(), *(os.path.dirname(file) for file in _loaded_files())])
    found: dict[Weakness, None] = {}
    for path in (*_programs(), *folders):
        found |= dict.fromkeys(_weaknesses(path))
    own = os.geteuid()
    for file in (*_loaded_files(), *_importable(_folders())):
        # The folder was walked already; a link may lead out of it.
        with contextlib.suppress(OSError):
            if os.path.islink(file):
                found |= dict.fromkeys(_weaknesses(file))
            elif each := weakness(file, os.stat(file), own):
                found[each] = None
    return list(found)


def _weaknesses(path: str) -> tuple[Weakness, ...]:
    """Where there is nothing at `path`, of the folder that it could be made in."""
    while True:
        try:
            return paths.weaknesses(path)
        except OSError:
            path = os.path.dirname(path)
            if path in ("", "/"):
                return ()


def _programs() -> Iterator[str]:
    if sys.executable:
        yield sys.executable
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main:
        yield main


def _folders() -> Iterator[str]:
    yield from {sys.prefix, sys.exec_prefix, sys.base_prefix, str(Path(__file__).parents[1])}
    yield from (paths.absolute(entry) for entry in sys.path)


def _loaded_files() -> Iterator[str]:
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and os.path.isabs(file):
            yield file


def _importable(folders: Iterable[str]) -> Iterator[str]:
    for folder in folders:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(_LOADED) or entry.is_dir():
                    yield entry.path
