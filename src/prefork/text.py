"""Text for people and logs: escape what others wrote, and format errors, addresses and counts.

Nothing here logs, prints, or knows an event.
"""

from __future__ import annotations

from collections.abc import Iterable

#: The maximum length of one value in a log line, in characters.
FIELD_LIMIT = 256
_TRACEBACK_LINES = 60


def text_of(value: object) -> str:
    """Return `str(value)`, or a placeholder if `__str__` raises: a service's exception may be of any class."""
    try:
        return str(value)
    except Exception:
        return f"({type(value).__name__} has no text: its __str__ raises)"


def describe_error(exc: BaseException) -> str:
    """Return the class of an exception, and its message if it has one."""
    text = text_of(exc)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def escape_ascii(value: object, limit: int = FIELD_LIMIT) -> str:
    """Return `value` as printable ASCII of at most `limit` characters, so that no byte of a peer reaches a terminal."""
    text = text_of(value)[: limit + 1]
    if text.isascii() and text.isprintable():
        # What is nearly always true: tables of connections have thousands of such texts.
        escaped = text
    else:
        escaped = "".join(c if " " <= c <= "~" else c.encode("unicode_escape", "replace").decode() for c in text)
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


def escape_controls(value: object, limit: int = FIELD_LIMIT) -> str:
    """Return what the operator wrote as one printable line of at most `limit` characters.

    Letters of every script stay. Controls, line separators, bidirectional overrides and lone surrogates are escaped,
    because they could break a line or steer a terminal.
    """
    text = text_of(value)[: limit + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def escaped_traceback(exc: BaseException) -> str:
    """Return the lines of the traceback of an exception, each escaped; of a long one the first and the last."""
    import traceback

    try:
        lines = "".join(traceback.format_exception(exc)).splitlines()
    except Exception:
        # Formatting calls methods of the exception's class, which is the service's own.
        lines = ["(the traceback cannot be formatted)"]
    if len(lines) > _TRACEBACK_LINES:
        lines[10 : len(lines) - _TRACEBACK_LINES + 10] = ["  ..."]
    return "\n".join(escape_ascii(line, 512) for line in lines)


def count_of(number: int, noun: str) -> str:
    """Return a number and its noun: `1 worker`, `2 workers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most like a wrong one; "" if none is."""
    import difflib

    return next(iter(difflib.get_close_matches(name, list(known), 1)), "")


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return `, did you mean NAME?` with the known name that is most like a wrong one, or nothing.

    `prefix` stands before the name in the text, and is none of what is compared.
    """
    found = nearest(name, known)
    return f", did you mean {prefix}{found}?" if found else ""


def format_address(address: object) -> str:
    """Return a socket address as text: `127.0.0.1:5000`, `[::1]:5000`, or `unix` for an unnamed unix socket."""
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(address, bytes):
        # An abstract name, or what a proxy tells of its client: a handler that logs `stream.peer` does not escape it.
        address = escape_ascii(address.decode("utf-8", "backslashreplace"))
    return f"unix:{address}" if address else "unix"


def format_bytes(count: float | None) -> str:
    """Return a number of bytes in at most six characters: `512`, `1.4K`, `36M`; "-" for None."""
    if count is None:
        return "-"
    for unit in ("", "K", "M", "G", "T"):
        if abs(count) < 1000 or unit == "T":
            return f"{count:.1f}{unit}" if unit and count < 10 else f"{count:.0f}{unit}"
        count /= 1024
    raise AssertionError("every size has a unit")


def format_duration(seconds: float | None) -> str:
    """Return a time in its two largest units: `0.3s`, `42s`, `5m12s`, `3h04m`, `12d06h`; "-" for None."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for size, unit, next_size, next_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // next_size:02d}{next_unit}"
    return f"{whole}s"
