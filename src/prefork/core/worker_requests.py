"""What a worker asks its supervisor for, and the answers: one packet each, JSON of at most LIMIT bytes.

Pure: bytes in, values out. The worker may be hostile, so a packet that cannot be read raises ValueError, and addresses
are numeric: nothing here is looked up. An answer has the number of its request, because one may come too late.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass

#: Bytes of a packet. A path of a unix socket has at most 108.
LIMIT = 4096
_PATH_BYTES = 108
#: Characters of a reason, each of which may take six bytes.
_REASON_LIMIT = 600
#: Above every number of a request.
_NUMBERS = 2**62
#: Calls for one address that a program may make: each is a socket that the supervisor holds.
MAX_NTH = 64
#: Families as Linux numbers them, in the packets (socket(2)).
UNIX, IPV4, IPV6 = 1, 2, 10


@dataclass(frozen=True, slots=True)
class BindRequest:
    """A program calls bind(2) for an address, for the `nth` time (from 0)."""

    family: int
    host: str
    """A numeric address; for a unix socket its absolute path, or an abstract name with its leading NUL."""
    port: int = 0
    scope: int = 0
    """The scope id of an IPv6 address."""
    nth: int = 0
    v6only: bool = True
    mode: int = 0o600
    """Of the file of a unix socket."""

    @property
    def key(self) -> str:
        """Identify the socket: the same text in every worker that makes the same call."""
        return f"{self.text()}#{self.nth}"

    def text(self) -> str:
        """Return the address as log lines show it."""
        if self.family == UNIX:
            return "unix:" + self.host.replace("\0", "@")
        zone = f"%{self.scope}" if self.scope else ""
        return f"[{self.host}{zone}]:{self.port}" if self.family == IPV6 else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class HeldRequest:
    """A program is about to remove a file: is it that of a socket which the supervisor holds?"""

    path: str


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """A program wants a lease. The descriptor that comes with the answer is readable once the worker holds it."""

    name: str


Request = BindRequest | HeldRequest | LeaseRequest


@dataclass(frozen=True, slots=True)
class Granted:
    """The answer to a request that was granted; with a descriptor for a BindRequest and for a LeaseRequest."""

    silent: bool = False
    """The address is another worker's own: pretend to listen on it."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to a request that was refused, as the system call would have failed."""

    errno: int
    reason: str


Answer = Granted | Refused


def encode_request(request: Request, number: int) -> bytes:
    """Return a request as a packet. Raises ValueError if it is too long."""
    value: dict[str, object] = {}
    match request:
        case BindRequest():
            value = {
                "bind": [request.family, request.host, request.port, request.scope],
                "nth": request.nth,
                "v6only": request.v6only,
                "mode": request.mode,
            }
        case HeldRequest():
            value = {"held": request.path}
        case LeaseRequest():
            value = {"lease": request.name}
    return _packet({"number": number, **value})


def decode_request(packet: bytes) -> tuple[Request, int]:
    """Return the request of a packet, and its number. Raises ValueError for anything else."""
    value = _parse(packet)
    number = value.get("number")
    if not isinstance(number, int) or not 0 <= number < _NUMBERS:
        raise ValueError("not a number")
    return _request(value), number


def _request(value: dict[str, object]) -> Request:
    match value:
        case {
            "bind": [int(family), str(host), int(port), int(scope)],
            "nth": int(nth),
            "v6only": bool(v6only),
        } as found:
            mode = found.get("mode")
            request = BindRequest(family, host, port, scope, nth, v6only, mode if isinstance(mode, int) else 0o600)
            _check_bind(request)
            return request
        case {"held": str(path)}:
            return HeldRequest(path)
        case {"lease": str(name)}:
            return LeaseRequest(name)
    raise ValueError("not a request")


def encode_answer(answer: Answer, number: int) -> bytes:
    if isinstance(answer, Granted):
        return _packet({"number": number, "granted": True, "silent": answer.silent})
    return _packet({"number": number, "errno": answer.errno, "reason": answer.reason[:_REASON_LIMIT]})


def decode_answer(packet: bytes) -> tuple[Answer, int]:
    """Return the answer of a packet, and the number of its request. Raises ValueError for anything else."""
    match _parse(packet):
        case {"number": int(number), "granted": True, "silent": bool(silent)}:
            return Granted(silent), number
        case {"number": int(number), "errno": int(errno), "reason": str(reason)}:
            return Refused(errno, reason), number
    raise ValueError("not an answer")


def _check_bind(request: BindRequest) -> None:
    if isinstance(request.port, bool) or not (0 <= request.port <= 65535 and 0 <= request.nth < MAX_NTH):
        raise ValueError("a port or a number that cannot be")
    if not 0 <= request.scope < 2**32 or not 0 <= request.mode <= 0o777:
        raise ValueError("a scope or a mode that cannot be")
    match request.family:
        case 1:
            host = request.host
            is_path = host.startswith("/") and "\0" not in host
            if not (is_path or host.startswith("\0")) or len(host.encode(errors="surrogateescape")) > _PATH_BYTES:
                raise ValueError("not a path")
        case 2:
            ipaddress.IPv4Address(request.host)
        case 10:
            if "%" in request.host:
                raise ValueError("a zone in the address")
            ipaddress.IPv6Address(request.host)
        case _:
            raise ValueError("an unknown family")


def _packet(value: dict[str, object]) -> bytes:
    packet = json.dumps(value).encode()
    if len(packet) > LIMIT:
        raise ValueError("the request is too long")
    return packet


def _parse(packet: bytes) -> dict[str, object]:
    try:
        value = json.loads(packet)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value
