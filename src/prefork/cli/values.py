"""From text to values: each function takes an option and the text that was given for it, and raises ConfigError.

Pure. Bounds of a value are checked where it becomes a setting, in `config.py`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, Literal

from ..addresses import Address, parse_address
from ..checks import parse_duration, reject
from ..errors import ConfigError


def parse_int(option: str, value: str) -> int:
    # int() would accept underscores, spaces and digits of other scripts, and raise for more than 4300 digits.
    if not re.fullmatch(r"[+-]?[0-9]+", value):
        reject(option, value, "must be a whole number")
    if len(value) > 18:
        reject(option, value, "the number is too large")
    return int(value)


def parse_octal(option: str, value: str) -> int:
    if not re.fullmatch(r"0?[0-7]{1,3}", value):
        reject(option, value, "must be up to three octal digits, such as 027")
    return int(value, 8)


def _parse_decimal(option: str, value: str, expected: str) -> float:
    # float() would accept nan, inf and underscores. Exponents are how a file's huge numbers arrive here.
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", value):
        reject(option, value, expected)
    return float(value)


_SECONDS = "must be a number of seconds, such as 30 or 2.5, or a time with units, such as 500ms, 5m or 1h30m"


def parse_seconds(option: str, value: str, expected: str = _SECONDS) -> float:
    """Return a time in seconds, which a bare number is, too. Raises ConfigError."""
    seconds = parse_duration(value)
    return _parse_decimal(option, value, expected) if seconds is None else seconds


def parse_delay(option: str, value: str) -> float | Literal["auto"]:
    """Return a time in seconds, or "auto". Raises ConfigError."""
    return "auto" if value == "auto" else parse_seconds(option, value, f"{_SECONDS}, or auto")


parse_number = functools.partial(_parse_decimal, expected="must be a number, such as 100 or 0.5")


def parse_size(option: str, value: str) -> int:
    """Return a number of bytes; K and KiB stand for 1024 bytes, M and G for 1024² and 1024³. Raises ConfigError."""
    found = re.fullmatch(r"([0-9]{1,15})(?:([KMG])(?:iB)?)?", value)
    if found is None:
        reject(option, value, "must be a number of bytes, such as 536870912, 512M or 512MiB")
    return int(found[1]) << 10 * " KMG".index(found[2] or " ")


def unescape(option: str, value: str) -> bytes:
    r"""Return text as bytes; \r, \n, \t, \\ and \xNN stand for characters that cannot be typed. Raises ConfigError."""
    simple = {"r": "\r", "n": "\n", "t": "\t", "\\": "\\"}

    def plain(found: re.Match[str]) -> str:
        if found[1] is None:
            reject(option, value, r"after a backslash only r, n, t, \ or xNN can follow, as in '421 busy\r\n'")
        return simple.get(found[1]) or chr(int(found[1][1:], 16))

    return re.sub(r"\\(?:([rnt\\]|x[0-9a-fA-F]{2})|)", plain, value).encode("utf-8", "surrogateescape")


def parse_for(option: str, value: str) -> Address:
    """Return an address of another option than --bind. Raises ConfigError, which names that option."""
    try:
        return parse_address(value)
    except ConfigError as exc:
        raise ConfigError(str(exc).replace("--bind", option), option=option) from None


def parse_flag(option: str, value: str) -> bool:
    known = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if value.lower() not in known:
        reject(option, value, "must be true or false")
    return known[value.lower()]


def optional(parse: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
    """Return a parser that gives None for `off`, and otherwise calls `parse`."""
    return lambda option, value: None if value == "off" else parse(option, value)
