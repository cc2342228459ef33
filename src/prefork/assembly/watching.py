"""What `--reload` watches: the directories of the code, and the configuration file.

The watching is in `system/source_watcher.py`; which files count as sources is in `core/sources.py`.
"""

from __future__ import annotations

import os

from ..program import Program, ProgramKind
from ..system.source_changes import Watched
from ..worker.context import GenerationConfig
from ..worker.loader import target_file
from .generation_builder import physical_directory


def code_directories(target: object) -> list[str]:
    """Return where the code is: the current directory, and that of a TARGET or PROGRAM that is a file."""
    directories = [physical_directory()]
    match target:
        case str() if file := target_file(target):
            directories.append(os.path.dirname(os.path.realpath(file)))
        case Program(kind=ProgramKind.FILE, name=file):
            # It may be a directory with a __main__.py.
            path = os.path.realpath(file)
            directories.append(path if os.path.isdir(path) else os.path.dirname(path))
    return [each for each in directories if each]


def watched_sources(config: GenerationConfig, directories: list[str], config_file: str) -> Watched | None:
    """Return what is to be watched, without directories inside of others; None without `--reload`."""
    if not config.settings.reload:
        return None
    outermost = tuple(each for each in dict.fromkeys(directories) if not _is_inside_one(each, directories))
    return Watched(outermost, config_file, config.identity)


def _is_inside_one(directory: str, others: list[str]) -> bool:
    return any(directory != each and f"{directory}/".startswith(f"{each.rstrip('/')}/") for each in others)
