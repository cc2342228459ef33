"""Choose an application protocol from those that a client offers (ALPN, RFC 7301).

Pure: the extension's content goes in, a name comes out.
"""

from __future__ import annotations

from collections.abc import Sequence


def choose_protocol(own: Sequence[bytes], offered: bytes) -> int | None:
    """Return the position in `own` of the first protocol that the client offers; None if it offers none of them.

    `offered` is a ProtocolNameList (RFC 7301, 3.1): names that are preceded by their length in one byte. Raises
    ValueError if it is none.
    """
    names = set()
    position = 0
    while position < len(offered):
        end = position + 1 + offered[position]
        if end > len(offered) or end == position + 1:
            raise ValueError("the list of protocols is cut, or has an empty name")
        names.add(offered[position + 1 : end])
        position = end
    return next((position for position, each in enumerate(own) if each in names), None)
