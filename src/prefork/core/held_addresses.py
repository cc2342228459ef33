"""Decide which held socket a program gets for an address that it binds. Pure: addresses go in, a position comes out.

The sockets themselves are in `system/held_sockets.py`: `assembly/program_sockets.py` binds them for a program.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from .worker_requests import IPV6, UNIX, BindRequest, Refused

_WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class HeldAddress:
    """A socket that the supervisor holds, by its address."""

    family: int
    host: str
    port: int
    v6only: bool
    named: bool
    """--bind names it: the operator decides the address, and the program only the port."""
    key: str = ""
    """The key of the request for which it was bound; "" if none was."""


def match(request: BindRequest, held: Sequence[HeldAddress]) -> int | Refused | None:
    """Return the position in `held` of the socket for `request`; None if there is none.

    The same call of the same program gets the same socket, in every worker. An address that --bind names also stands
    for one that differs by "all interfaces" only: `--bind :8000` for a program that binds 127.0.0.1:8000. Return a
    refusal if the program wants an IPv6 socket for both families, and this one is for IPv6 only, or the reverse.
    """
    found = next((position for position, each in enumerate(held) if each.key == request.key), None)
    if found is None and request.nth == 0 and (request.port or request.family == UNIX):
        found = _by_address(request, held)
    if found is not None and request.family == IPV6 and held[found].v6only != request.v6only:
        return _contradiction(request, held[found])
    return found


def _by_address(request: BindRequest, held: Sequence[HeldAddress]) -> int | None:
    same = [
        (position, each)
        for position, each in enumerate(held)
        if (each.family, each.port) == (request.family, request.port)
    ]
    for position, each in same:
        if each.host == request.host:
            return position
    if request.family == UNIX:
        return None
    for position, each in same:
        if each.named and (each.host in _WILDCARDS or request.host in _WILDCARDS):
            return position
    return None


def _contradiction(request: BindRequest, held: HeldAddress) -> Refused:
    kinds = {True: "for IPv6 only", False: "for both families"}
    reason = f"the program wants {request.text()} {kinds[request.v6only]}, and it is held {kinds[held.v6only]}"
    cure = ": leave out its --bind" if held.named else ""
    return Refused(errno.EADDRINUSE, reason + cure)
