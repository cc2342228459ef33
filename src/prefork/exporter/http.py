"""Read the head of an HTTP/1.1 request, and make responses: as much of RFC 9112 as an endpoint without bodies needs.

Pure: bytes in, values out. What a path means is in `routes.py`, and how long each wait may be in `server.py`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

#: Maximum length of a request's head, in bytes.
MAX_HEAD = 8192
TEXT = "text/plain; charset=utf-8"
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,4000}) HTTP/1\.([01])")
# RFC 9110, 5.6.2 (token) and 5.5 (field content); what continues a line on the next one is obsolete, and refused.
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
#: Fields of which a second one could make two readers of one request disagree.
_SINGLE = frozenset({"host", "content-length", "transfer-encoding"})


#: Fields of every response, besides those that say what its body is.
COMMON_FIELDS: Mapping[str, str] = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class BadRequest(Exception):
    """Raised for what is no request that is answered; has the status to answer with, and the reason."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """A request without a body."""

    method: str
    path: str
    """The path without its query."""
    fields: Mapping[str, str]
    """Fields of the head by name, in lower case."""
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class Response:
    """What is sent; `head` puts the fields together that every response has."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    fields: Mapping[str, str] = field(default_factory=dict)

    def head(self, keep_alive: bool) -> bytes:
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            *(f"{name}: {value}" for name, value in {**COMMON_FIELDS, **self.fields}.items()),
            f"Connection: {'keep-alive' if keep_alive else 'close'}",
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def text(status: HTTPStatus, line: str) -> Response:
    """Return a response of one line."""
    return Response(status, f"{line}\n".encode())


def is_loopback(address: object) -> bool:
    """Return whether a local address, as the kernel gives it, is one that only this machine reaches."""
    return isinstance(address, tuple) and ipaddress.ip_address(address[0].partition("%")[0]).is_loopback


def names_loopback(host: str) -> bool:
    """Return whether a Host field names this machine without a name server: `localhost`, or an address."""
    name = re.sub(r":[0-9]{0,5}$", "", host.strip()).strip("[]")
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def parse_request(head: bytes) -> Request:
    """Return the request of a head that ends with an empty line. Raises BadRequest."""
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(first)
    if found is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "not a request of HTTP/1.1")
    fields: dict[str, str] = {}
    for line in lines:
        matched = _FIELD.fullmatch(line)
        if matched is None:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "a field of the head cannot be read")
        name, value = matched[1].decode().lower(), matched[2].decode("latin-1")
        if name in fields and name in _SINGLE:
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"{name} is there twice")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    modern = found[3] == b"1"
    if modern and "host" not in fields:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "host is missing")
    if "transfer-encoding" in fields or fields.get("content-length", "0") != "0":
        raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a body is not read")
    options = {each.strip().lower() for each in fields.get("connection", "").split(",")}
    keep_alive = "close" not in options and (modern or "keep-alive" in options)
    return Request(found[1].decode(), found[2].decode().partition("?")[0], fields, keep_alive)
