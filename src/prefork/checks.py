"""Checks of the values that a user chose: each raises ConfigError with the option, its value, and what it must be.

Which check belongs to which option stands in `config.py` and `addresses.py`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NoReturn

from .errors import ConfigError
from .text import escape_controls

#: A week. epoll_wait(2) counts milliseconds in an int, which overflows after 24 days.
MAX_SECONDS = 7 * 24 * 3600
MAX_DESCRIPTOR = 2**31 - 1
#: Names of application protocols of one server. The list of all of them takes less than 64 KiB in a ClientHello.
MAX_PROTOCOLS = 100
#: Seconds in each unit of a time; `ms` first, because `m` begins it.
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: Events per second.
MAX_RATE = 10**9


def reject(option: str, value: object, why: str) -> NoReturn:
    raise ConfigError(f"{option} {format_value(value)}: {why}", option=option)


def format_value(value: object) -> str:
    """Return a value as one line of an error message, even if it is empty, huge, or no text at all."""
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, str):
        return escape_controls(value) if value.strip() else repr(escape_controls(value))
    try:
        return escape_controls(repr(value))
    except Exception:
        # repr() refuses an int of more than 4300 digits, and a caller's own class may raise anything.
        return f"(a value of type {type(value).__name__})"


def parse_duration(text: str) -> float | None:
    """Return the seconds that a time with units stands for, such as 500ms, 5m, 1h30m or 2d; None if it has none."""
    number = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
    if not re.fullmatch(f"(?:{number}(?:{'|'.join(_UNITS)}))+", text):
        return None
    return sum(float(count) * _UNITS[unit] for count, unit in re.findall(f"({number})({'|'.join(_UNITS)})", text))


def check_int(option: str, value: object, minimum: int, maximum: int, meaning: str = "") -> None:
    """Check a whole number; `meaning` follows the minimum in the message."""
    if not isinstance(value, int) or isinstance(value, bool):
        reject(option, value, "must be a whole number")
    if value < minimum:
        reject(option, value, f"must be {minimum} or more{meaning}")
    if value > maximum:
        reject(option, value, f"must be {maximum} or less")


def check_seconds(option: str, value: object, zero: bool, maximum: float = MAX_SECONDS) -> None:
    """Check a number of seconds, which may be 0 if `zero` is true."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        reject(option, value, "must be a number of seconds, such as 30 or 2.5")
    if not (value >= 0 if zero else value > 0):
        reject(option, value, f"must be {'0 seconds or more' if zero else 'more than 0 seconds'}")
    if value > maximum:
        week = " (a week)" if maximum == MAX_SECONDS else ""
        reject(option, value, f"must be {maximum} seconds{week} or less")


def check_rate(option: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value or value <= 0:
        reject(option, value, "must be a number more than 0, such as 100 or 0.5")
    if value > MAX_RATE:
        reject(option, value, f"must be {MAX_RATE} or less")


def check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        reject(option, value, f"must be {', '.join(choices[:-1])} or {choices[-1]}")


def check_flag(option: str, value: object) -> None:
    if not isinstance(value, bool):
        reject(option, value, "must be True or False")


def check_text(option: str, value: object) -> None:
    """Check text that is passed to the system, which ends at a NUL."""
    if not isinstance(value, str) or "\0" in value:
        reject(option, value, "must be text without a NUL character")


def check_ip_address(option: str, value: str) -> None:
    """Check an IP address: bind(2) would look a name up, and the loop would wait for that."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        reject(option, value, "must be an IP address")


def check_protocols(option: str, value: tuple[object, ...]) -> None:
    """Check the names of application protocols (RFC 7301, 3.1): ASCII here, though any bytes are allowed there."""
    for position, each in enumerate(value):
        if not isinstance(each, str) or not each.isascii() or not each.isprintable() or not 1 <= len(each) <= 255:
            reject(option, each, "must be names of protocols, such as h2,http/1.1")
        if each in value[:position]:
            reject(option, each, "given twice")
    if len(value) > MAX_PROTOCOLS:
        reject(option, value[-1], f"at most {MAX_PROTOCOLS} protocols can be given")


def check_bytes(option: str, value: object, maximum: int) -> None:
    if not isinstance(value, bytes):
        reject(option, value, f"must be bytes, not {type(value).__name__}")
    if len(value) > maximum:
        reject(option, value, f"must be at most {maximum} bytes")
