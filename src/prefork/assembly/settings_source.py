"""Where settings come from, as this package sees it: a protocol, and the settings of a program that calls `serve`.

The command line, its files and its variables are read in `cli/sources.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from ..config import Settings
from ..core.trust import Weakness
from ..errors import ConfigError


class SettingsSource(Protocol):
    """Gives the settings, at the start and at each reload."""

    @property
    def file(self) -> str:
        """The absolute path of the file that settings come from; "" if there is none."""

    @property
    def weaknesses(self) -> tuple[tuple[str, Weakness], ...]:
        """How another user could have changed what the last settings were read from, by option."""

    @property
    def unknown_variables(self) -> tuple[tuple[str, str], ...]:
        """Each variable of prefork's prefix that names no option, and what may be meant by it."""

    def settings(self) -> Settings:
        """Return the settings as they are now. Raises ConfigError."""

    def origin_of(self, option: str) -> str:
        """Return where an option of the last settings was set, if not on the command line: a variable, or a file."""

    def pin_file(self, file: str) -> None:
        """Read this file ("" for none) and no other from now on, because the predecessor of an upgrade did."""


class FixedSettings:
    """The settings of a program that calls `serve` itself: no reload changes them."""

    file = ""
    weaknesses: tuple[tuple[str, Weakness], ...] = ()
    unknown_variables: tuple[tuple[str, str], ...] = ()

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def settings(self) -> Settings:
        return self._settings

    def origin_of(self, option: str) -> str:
        return ""

    def pin_file(self, file: str) -> None:
        pass


@contextlib.contextmanager
def locating(source: SettingsSource) -> Iterator[None]:
    """Add to a ConfigError that leaves the block where its option was set."""
    try:
        yield
    except ConfigError as exc:
        exc.origin = source.origin_of(exc.option)
        raise
