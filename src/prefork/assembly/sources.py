"""Where settings come from, as the rest sees it. The command reads files (`cli/sources.py`); a program has its own."""

from __future__ import annotations

from typing import Protocol

from ..config import Settings
from ..core.trust import Weakness


class Source(Protocol):
    """Gives the settings, at the start and at each reload."""

    @property
    def file(self) -> str:
        """The file that settings come from, as an absolute path; "" for none."""

    @property
    def weaknesses(self) -> tuple[tuple[str, Weakness], ...]:
        """Who could have changed what the last settings were read from, by option."""

    def settings(self) -> Settings:
        """As they are now. Raises ConfigError."""

    def keep_to(self, file: str) -> None:
        """Read this file, "" for none, and no other: the supervisor before this one did."""


class Fixed:
    """The settings of a program that serves by itself."""

    file = ""
    weaknesses: tuple[tuple[str, Weakness], ...] = ()

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def settings(self) -> Settings:
        """Always the same."""
        return self._settings

    def keep_to(self, file: str) -> None:
        """There is none."""
