"""Checks of values that a user chose, which all refuse in the same words: the option, its value, what is wrong.

Each raises ConfigError or does nothing. What an option may be is said where the option is.
"""

from __future__ import annotations

from typing import NoReturn

from .errors import ConfigError
from .text import escape_controls

#: A week. epoll_wait(2) counts milliseconds in an int, which ends after 24 days.
MAX_SECONDS = 7 * 24 * 3600
MAX_DESCRIPTOR = 2**31 - 1


def reject(option: str, value: object, why: str) -> NoReturn:
    """Say what is wrong."""
    raise ConfigError(f"{option} {format_value(value)}: {why}")


def format_value(value: object) -> str:
    """A value as an error message names it: in one line, also when it is empty, huge or not text at all."""
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, str):
        return escape_controls(value) if value.strip() else repr(escape_controls(value))
    try:
        return escape_controls(repr(value))
    except Exception:
        # Numbers of more than 4300 digits refuse, and so may what a caller has made up.
        return f"(a value of type {type(value).__name__})"


def check_whole(option: str, value: object, least: int, most: int, meaning: str = "") -> None:
    """A whole number from `least` to `most`; `meaning` says what a special one means."""
    if not isinstance(value, int) or isinstance(value, bool):
        reject(option, value, "must be a whole number")
    if value < least:
        reject(option, value, f"must be {least} or more{meaning}")
    if value > most:
        reject(option, value, f"must be {most} or less")


def check_seconds(option: str, value: object, zero: bool, most: float = MAX_SECONDS) -> None:
    """A number of seconds; `zero`: it may be 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        reject(option, value, "must be a number of seconds, such as 30 or 2.5")
    if not (value >= 0 if zero else value > 0):
        reject(option, value, f"must be {'0 seconds or more' if zero else 'more than 0 seconds'}")
    if value > most:
        week = " (a week)" if most == MAX_SECONDS else ""
        reject(option, value, f"must be {most} seconds{week} or less")


def check_rate(option: str, value: object) -> None:
    """So many a second."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value or not 0 < value <= 1e9:
        reject(option, value, "must be a number more than 0, such as 100 or 0.5")


def check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in choices:
        reject(option, value, f"must be {', '.join(choices[:-1])} or {choices[-1]}")
