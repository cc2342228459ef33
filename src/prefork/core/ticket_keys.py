"""Keys of session tickets: read them from a file of HAProxy's format, and decide which one encrypts.

Pure: the content of the file goes in, keys come out. OpenSSL gets them in `system/ticket_keys.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from ..text import count_of

#: As HAProxy asks: the next key, the one that encrypts, and the last one.
MIN_KEYS = 3
#: Every key is compared with the name in a ticket. A file that only grows has more; it is refused, and not cut, because
#: other servers may encrypt with what would be left out.
MAX_KEYS = 64
#: Longest file that is read.
MAX_BYTES = 16 * 1024
NAME_SIZE = 16
#: Bytes of the two keys of a line, by its size.
_KEY_SIZES = {48: 16, 80: 32}
_CURE = "write each line with: openssl rand 80 | openssl base64 -A; echo"
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}


class TicketKeysError(ValueError):
    """Raised with what is wrong with a file of ticket keys. The text names lines and sizes, and no byte of a key."""


@dataclass(frozen=True, slots=True, repr=False)
class TicketKey:
    """One key: tickets that begin with `name` are encrypted with `aes`, and authenticated with `mac` (HMAC-SHA256)."""

    name: bytes
    aes: bytearray
    mac: bytearray


class TicketKeys:
    """The keys of one file, in its order. The last but one encrypts, and all of them decrypt.

    So a new key, which is appended, is known to every server before the first one encrypts with it. The keys are
    overwritten with zeros when the last reference is gone.
    """

    __slots__ = ("keys",)

    def __init__(self, keys: tuple[TicketKey, ...]) -> None:
        """Take keys in the order of their file. Raises TicketKeysError for too few, or for two of the same name."""
        self.keys = keys
        _check(keys)

    def __del__(self) -> None:
        for key in self.keys:
            for secret in (key.aes, key.mac):
                secret[:] = bytes(len(secret))

    @classmethod
    def from_raw(cls, keys: Iterable[bytearray]) -> Self:
        """Return the keys whose bytes are `keys`, each as in a line of the file. Raises TicketKeysError."""
        return cls(tuple(map(_split, keys)))

    def raw(self) -> list[bytearray]:
        """Return the bytes of each key as in a line of the file, for `from_raw`. The caller overwrites them."""
        return [bytearray(key.name) + key.aes + key.mac for key in self.keys]

    def derive(self, group: bytes) -> TicketKeys:
        """Return the keys for the sessions of one `group`, to which no ticket of another group is known.

        b"" stands for the keys as they are. Every server with the same file and the same group has the same keys.
        """
        return TicketKeys(tuple(_derive(key, group) for key in self.keys)) if group else self

    @property
    def encrypting(self) -> TicketKey:
        """The key that new tickets are encrypted with."""
        return self.keys[-2]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TicketKeys) and self.keys == other.keys

    __hash__ = None  # type: ignore[assignment]  # it is compared by what is overwritten

    def __repr__(self) -> str:
        return f"<{len(self.keys)} ticket keys>"


def parse_ticket_keys(content: bytes | bytearray) -> TicketKeys:
    """Return the keys in a file: lines of base64, each of 48 or 80 bytes. Raises TicketKeysError.

    48 bytes are name, AES key and MAC key of 16 bytes each; 80 bytes are a name of 16, and two keys of 32. A line may
    stand there twice. Empty lines are skipped.
    """
    found: list[TicketKey] = []
    size = 0
    for number, start, end in _lines(content):
        raw = _decode(content, start, end)
        try:
            if raw is None or len(raw) not in _KEY_SIZES:
                what = "not base64" if raw is None else f"{len(raw)} bytes, and not 48 or 80"
                raise TicketKeysError(f"line {number}: {what} ({_CURE})")
            if size not in (0, len(raw)):
                raise TicketKeysError(f"line {number}: {len(raw)} bytes, but {size} in the lines before it")
            size = len(raw)
            found.append(_split(raw))
        finally:
            if raw is not None:
                raw[:] = bytes(len(raw))
        if len(found) > MAX_KEYS:
            raise TicketKeysError(f"more than {MAX_KEYS} keys (remove the oldest, which are the first lines)")
    return TicketKeys(tuple(found))


def _derive(key: TicketKey, group: bytes) -> TicketKey:
    size = len(key.aes)
    # The hash is an object that cannot be overwritten; what the keyring loads, can.
    raw = hashlib.shake_256(b"prefork ticket keys" + key.name + key.aes + key.mac + group).digest(NAME_SIZE + 2 * size)
    return _split(bytearray(raw))


def _check(keys: Sequence[TicketKey]) -> None:
    if len(keys) < MIN_KEYS:
        raise TicketKeysError(f"{count_of(len(keys), 'key')}, and {MIN_KEYS} or more are needed ({_CURE})")
    by_name: dict[bytes, TicketKey] = {}
    for number, key in enumerate(keys, 1):
        if by_name.setdefault(key.name, key) != key:
            raise TicketKeysError(f"key {number}: another key has the same first 16 bytes, by which tickets name it")


def _lines(content: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each line that is not empty, without its line ending and spaces around it."""
    start, number = 0, 0
    while start < len(content):
        number += 1
        end = content.find(b"\n", start)
        stop = len(content) if end < 0 else end
        first, last = start, stop
        while first < last and content[first] in b" \t\r":
            first += 1
        while first < last and content[last - 1] in b" \t\r":
            last -= 1
        if first < last:
            yield number, first, last
        start = stop + 1


def _decode(content: bytes | bytearray, start: int, end: int) -> bytearray | None:
    """Return what a line of base64 (RFC 4648, 4) stands for; None if it is none.

    Not by `base64`, whose result is an object that cannot be overwritten.
    """
    padding = 0
    while padding < 2 and end > start and content[end - 1] == ord("="):
        end, padding = end - 1, padding + 1
    if (end - start + padding) % 4:
        return None
    # Of its final length at once, because a copy would stay behind where it grows.
    decoded = bytearray((end - start) * 6 // 8)
    bits = pending = filled = 0
    for position in range(start, end):
        value = _VALUES.get(content[position])
        if value is None:
            return None
        pending, bits = (pending << 6 | value) & 0xFFFF, bits + 6
        if bits >= 8:
            bits -= 8
            decoded[filled] = pending >> bits & 0xFF
            filled += 1
    return decoded


def _split(raw: bytearray) -> TicketKey:
    size = _KEY_SIZES.get(len(raw))
    if size is None:
        raise TicketKeysError(f"a key of {len(raw)} bytes, and not 48 or 80")
    middle = NAME_SIZE + size
    return TicketKey(bytes(raw[:NAME_SIZE]), raw[NAME_SIZE:middle], raw[middle:])
