"""Choose certificates by the server name that a client asks for (SNI, RFC 6066): exact, wildcard, or the default.

Pure: names and kinds of keys go in, positions of certificates come out. Nothing here reads a certificate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
_WILDCARD = "*."


@dataclass(frozen=True, slots=True)
class Identity:
    """What a certificate is for: its host names, as `canonical` returns them, and the type of its key."""

    names: tuple[str, ...]
    key_type: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Which certificates are offered, by their positions: one for each type of key, in their order."""

    by_name: Mapping[str, tuple[int, ...]]
    default: tuple[int, ...]
    """Offered to a client that names no server, or one that no certificate is for, unless that is refused."""


class SameName(Exception):
    """Raised for two certificates with the same name and type of key, of which only one could be offered."""

    def __init__(self, first: int, second: int, name: str) -> None:
        super().__init__(first, second, name)
        self.first, self.second, self.name = first, second, name


class NeverChosen(Exception):
    """Raised for a certificate that no client can be offered, because it names no host."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


def canonical(name: str) -> str:
    """Return a host name as names are compared: in lower case (RFC 4343), without the dot at its end (RFC 6066, 3).

    Names beyond ASCII come as A-labels on both sides, and stay as they are.
    """
    return name.lower().removesuffix(".")


def choose(certificates: Sequence[Identity], strict: bool) -> Choice:
    """Return which of the `certificates` each name is offered; `strict`: nothing is offered without a match.

    The default is the first certificate, with those of its first name that have keys of other types. Certificates
    without a name join the first one if it has none either. Raises SameName, NeverChosen.
    """
    found: dict[str, dict[str, int]] = {}
    for position, each in enumerate(certificates):
        if not each.names and (strict or certificates[0].names):
            raise NeverChosen(position)
        for name in each.names or ("",):
            others = found.setdefault(name, {})
            first = others.setdefault(each.key_type, position)
            # A certificate may repeat a name of its own.
            if first != position:
                raise SameName(first, position, name)
    groups = {name: tuple(others.values()) for name, others in found.items()}
    default = groups[certificates[0].names[0] if certificates[0].names else ""]
    groups.pop("", None)
    return Choice(groups, default)


class NameTable(Generic[T]):
    """Finds what belongs to a server name, in constant time: by the exact name, else by a wildcard of one label."""

    def __init__(self, entries: Mapping[str, T]) -> None:
        self._exact = {name: each for name, each in entries.items() if not name.startswith(_WILDCARD)}
        self._below = {name[len(_WILDCARD) :]: each for name, each in entries.items() if name.startswith(_WILDCARD)}

    def find(self, name: str) -> T | None:
        """Return the entry for `name`, or None. A wildcard stands for exactly one label (RFC 9525, 6.3)."""
        name = canonical(name)
        found = self._exact.get(name)
        if found is not None:
            return found
        label, _, parent = name.partition(".")
        return self._below.get(parent) if label else None
