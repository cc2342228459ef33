"""What `--reload` watches: the directories of the code, and the configuration file.

The watching is in `system/source_watcher.py`; which files count as sources is in `core/sources.py`.
"""

from __future__ import annotations

import os

from ..system.source_changes import Watched
from ..worker.context import GenerationConfig
from ..worker.loader import target_file
from .generation_builder import physical_directory


def code_directories(target: object) -> list[str]:
    """Return where the code of a service is: the current directory, and that of a TARGET that is a file."""
    directories = [physical_directory()]
    file = target_file(target) if isinstance(target, str) else ""
    if file:
        directories.append(os.path.dirname(os.path.realpath(file)))
    return [each for each in directories if each]


def watched_sources(config: GenerationConfig, directories: list[str], config_file: str) -> Watched | None:
    """Return what is to be watched, without directories inside of others; None without `--reload`."""
    if not config.settings.reload:
        return None
    outermost = tuple(each for each in dict.fromkeys(directories) if not _is_inside_one(each, directories))
    return Watched(outermost, config_file, config.identity)


def _is_inside_one(directory: str, others: list[str]) -> bool:
    return any(directory != each and f"{directory}/".startswith(f"{each.rstrip('/')}/") for each in others)
