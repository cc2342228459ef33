"""Addresses to listen on: parse the text of `--bind` into frozen values that are checked when they are made.

Nothing outside the text is looked at: no name is resolved, and no file is opened.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from .checks import MAX_DESCRIPTOR, check_int, reject
from .text import escape_controls

#: Maximum length of the path of a unix socket in bytes (unix(7): sun_path has 108, including the final NUL).
UNIX_PATH_LIMIT = 107


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """`HOST:PORT`; host None means all interfaces of both families, port 0 any free port. Raises ConfigError.

    A host is a name (RFC 1123, and underscores), a dotted quad, or an IPv6 address with or without a zone.
    """

    host: str | None
    port: int

    def __post_init__(self) -> None:
        check_int("--bind port", self.port, 0, 65535)
        error = None if self.host is None else _host_error(self.host)
        if error:
            reject("--bind host", self.host, error)

    def __str__(self) -> str:
        if self.host is None:
            return f":{self.port}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """`unix:PATH[,mode=OCTAL]`: a socket in the file system, and the mode of its file. Raises ConfigError."""

    path: str
    mode: int = 0o600

    def __post_init__(self) -> None:
        error = _unix_path_error(self.path)
        if error:
            reject("--bind", f"unix:{self.path}", error)
        check_int("--bind unix mode", self.mode, 0, 0o777)

    def __str__(self) -> str:
        return f"unix:{self.path}" + ("" if self.mode == 0o600 else f",mode={self.mode:03o}")


@dataclass(frozen=True, slots=True)
class FdAddress:
    """`fd:N`: a listening socket inherited from the parent process as this descriptor. Raises ConfigError."""

    fd: int

    def __post_init__(self) -> None:
        if not 3 <= self.fd <= MAX_DESCRIPTOR:
            reject("--bind", str(self), f"the descriptor must be {'3 or more' if self.fd < 3 else 'a smaller number'}")

    def __str__(self) -> str:
        return f"fd:{self.fd}"


@dataclass(frozen=True, slots=True)
class SystemdAddress:
    """`systemd[:NAME]`: all sockets passed by systemd, or those of this name. Raises ConfigError."""

    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[!-9;-~]{1,255}", self.name):
            reject("--bind", f"systemd:{self.name}", "the name must be one of FileDescriptorName= in the .socket unit")

    def __str__(self) -> str:
        return "systemd" if self.name is None else f"systemd:{self.name}"


Address = TCPAddress | UnixAddress | FdAddress | SystemdAddress

_FORMS = "expected HOST:PORT, [V6]:PORT, :PORT (all interfaces), unix:PATH[,mode=660], fd:N or systemd[:NAME]"


def parse_address(text: str) -> Address:
    """Return the address of a text of `--bind`; `str()` of an address is such a text.

    What getaddrinfo(3) would guess about is rejected: `127.1`, `0x7f.1`, ports above 65535, names of services. Raises
    ConfigError, which says what is wrong and what to write instead.
    """
    if not text:
        reject("--bind", text, _FORMS)
    if text.startswith("unix:"):
        return _parse_unix(text)
    if text == "systemd" or text.startswith("systemd:"):
        return SystemdAddress(text.removeprefix("systemd").removeprefix(":") if ":" in text else None)
    if text.startswith("fd:"):
        digits = text.removeprefix("fd:")
        if not re.fullmatch(r"[0-9]{1,10}", digits):
            reject("--bind", text, "fd: needs the number of a descriptor, as in fd:3")
        return FdAddress(int(digits))
    return _parse_tcp(text)


def _parse_tcp(text: str) -> TCPAddress:
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text)
    if scheme:
        reject(
            "--bind",
            text,
            f"an address has no scheme: write {escape_controls(text[scheme.end() :].rstrip('/')) or ':9000'}",
        )
    if "," in text:
        reject(
            "--bind", text, "one address is expected: repeat --bind, or separate addresses by spaces in PREFORK_BIND"
        )
    host, colon, digits = text.rpartition(":")
    if not colon or text.endswith("]"):
        if re.fullmatch(r"[0-9]{1,5}", text):
            reject("--bind", text, f"the port is missing: for port {text} on all interfaces write :{text}")
        reject("--bind", text, f"the port is missing; {_FORMS}")
    if host == "*":
        reject("--bind", text, f"for all interfaces omit the host, as in :{digits if digits.isdecimal() else 9000}")
    bracketed = re.fullmatch(r"\[(.*)\]", host, re.DOTALL)
    if bracketed:
        host = bracketed[1]
        if ":" not in host:
            reject("--bind", text, "brackets are for IPv6 addresses, as in [::1]:9000")
    elif ":" in host or "[" in host or "]" in host:
        reject("--bind", text, "an IPv6 address must be in brackets, as in [::1]:9000")
    if not re.fullmatch(r"[0-9]{1,5}", digits) or int(digits) > 65535:
        reject("--bind", text, "the port must be a number from 0 to 65535")
    error = _host_error(host) if host else None
    if error:
        reject("--bind", text, error)
    return TCPAddress(host or None, int(digits))


_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
#: The name of an interface is shorter than IFNAMSIZ (16), without spaces and slashes (netdevice(7)).
_ZONE = re.compile(r"[!-$&-.0-~]{1,15}")


def _host_error(host: object) -> str | None:
    if not isinstance(host, str) or not host:
        return "the host must be a name or an IP address"
    if ":" in host:
        return _ipv6_error(host)
    labels = host.removesuffix(".").split(".")
    if re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]*", labels[-1]):
        # getaddrinfo would read a host with such an end as an IPv4 address in an old notation (inet_aton(3)).
        octets = re.fullmatch(
            r"(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})", host
        )
        if octets is None or any(int(octet) > 255 for octet in octets.groups()):
            return "not an IPv4 address: write four numbers from 0 to 255, as in 127.0.0.1"
        return None
    if not host.isascii():
        return "the host must be written in ASCII (xn--... for other letters)"
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return "the host must be a name or an IP address"
    return None


def _ipv6_error(host: str) -> str | None:
    import ipaddress

    address, percent, zone = host.partition("%")
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return "not an IPv6 address: write it as in [::1]:9000"
    if percent and not _ZONE.fullmatch(zone):
        return "the zone after % must be the name or number of an interface, as in [fe80::1%eth0]:9000"
    if parsed.is_link_local and not percent:
        return f"a link-local address needs its interface, as in [{address}%eth0]:9000"
    return None


def _parse_unix(text: str) -> UnixAddress:
    path, comma, option = text.removeprefix("unix:").partition(",")
    error = _unix_path_error(path)
    if error:
        reject("--bind", text, error)
    if not comma:
        return UnixAddress(path)
    if not option.startswith("mode="):
        reject(
            "--bind", text, "after a comma only mode= can follow, as in ,mode=660 (repeat --bind for another address)"
        )
    mode = option.removeprefix("mode=")
    if not re.fullmatch(r"0?[0-7]{3}", mode):
        reject("--bind", text, "mode must be three octal digits, as in mode=660")
    return UnixAddress(path, int(mode, 8))


def _unix_path_error(path: object) -> str | None:
    if not isinstance(path, str) or not path or "\0" in path or path.endswith("/"):
        return "a path of a socket in the file system is needed, as in unix:/run/echo.sock"
    if path.startswith("@"):
        return f"abstract sockets are not supported, because any user may connect (for a file write unix:./{path})"
    if "," in path:
        return "the path must not contain a comma"
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        return "the path cannot be encoded for the file system"
    if size > UNIX_PATH_LIMIT:
        return f"the path has {size} bytes, and the system allows {UNIX_PATH_LIMIT}"
    return None
