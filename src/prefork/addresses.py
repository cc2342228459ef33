"""Addresses to listen on: their text, as `--bind` takes it, and the frozen values that it becomes.

Strict, and without looking at the world: no name is resolved, no file is touched.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from .checks import MAX_DESCRIPTOR, check_whole, reject

#: The longest path of a unix socket in bytes (unix(7): sun_path has 108, with a final zero).
UNIX_PATH_LIMIT = 107


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """`HOST:PORT`; `host` None is every interface on both families, port 0 one that is free.

    A host is a name (RFC 1123, and underscores), a dotted quad, or an IPv6 address with or without a zone. Nothing is
    resolved. Raises ConfigError.
    """

    host: str | None
    port: int

    def __post_init__(self) -> None:
        check_whole("--bind port", self.port, 0, 65535)
        wrong = None if self.host is None else _wrong_host(self.host)
        if wrong:
            reject("--bind host", self.host, wrong)

    def __str__(self) -> str:
        if self.host is None:
            return f":{self.port}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """`unix:PATH[,mode=OCTAL]`: a socket in the file system, whose file has these permissions. Raises ConfigError."""

    path: str
    mode: int = 0o600

    def __post_init__(self) -> None:
        wrong = _wrong_unix_path(self.path)
        if wrong:
            reject("--bind", f"unix:{self.path}", wrong)
        check_whole("--bind unix mode", self.mode, 0, 0o777)

    def __str__(self) -> str:
        return f"unix:{self.path}" + ("" if self.mode == 0o600 else f",mode={self.mode:03o}")


@dataclass(frozen=True, slots=True)
class FdAddress:
    """`fd:N`: a listening socket that the parent process has passed on under this number. Raises ConfigError."""

    fd: int

    def __post_init__(self) -> None:
        check_whole("--bind fd", self.fd, 3, MAX_DESCRIPTOR)

    def __str__(self) -> str:
        return f"fd:{self.fd}"


@dataclass(frozen=True, slots=True)
class SystemdAddress:
    """`systemd[:NAME]`: the sockets of that name that systemd has passed, or all of them. Raises ConfigError."""

    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[!-9;-~]{1,255}", self.name):
            reject("--bind", f"systemd:{self.name}", "the name must be that of FileDescriptorName=")

    def __str__(self) -> str:
        return "systemd" if self.name is None else f"systemd:{self.name}"


Address = TCPAddress | UnixAddress | FdAddress | SystemdAddress

_FORMS = "expected HOST:PORT, [V6]:PORT, :PORT (all interfaces), unix:PATH[,mode=660], fd:N or systemd[:NAME]"


def parse_address(text: str) -> Address:
    """The address that `text` says, as `--bind` takes it; `str()` of an address is such a text.

    Strict: what getaddrinfo(3) would guess about (`127.1`, `0x7f.1`, ports beyond 65535, names of services) is refused.
    Raises ConfigError, which says what is wrong and what to write instead.
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
            reject("--bind", text, "fd: wants the number of a descriptor, as in fd:3")
        return FdAddress(int(digits))
    return _parse_tcp(text)


def _parse_tcp(text: str) -> TCPAddress:
    host, colon, digits = text.rpartition(":")
    if not colon or text.endswith("]"):
        reject("--bind", text, f"the port is missing; {_FORMS}")
    if host == "*":
        reject("--bind", text, f"for all interfaces leave the host out, as in :{digits or 9000}")
    bracketed = re.fullmatch(r"\[(.*)\]", host, re.DOTALL)
    if bracketed:
        host = bracketed[1]
        if ":" not in host:
            reject("--bind", text, "brackets are for IPv6 addresses, as in [::1]:9000")
    elif ":" in host or "[" in host or "]" in host:
        reject("--bind", text, "an IPv6 address is written in brackets, as in [::1]:9000")
    if not re.fullmatch(r"[0-9]{1,5}", digits) or int(digits) > 65535:
        reject("--bind", text, "the port must be a number from 0 to 65535")
    wrong = _wrong_host(host) if host else None
    if wrong:
        reject("--bind", text, wrong)
    return TCPAddress(host or None, int(digits))


_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
#: An interface's name is shorter than IFNAMSIZ, and has no space and no slash in it (netdevice(7)).
_ZONE = re.compile(r"[!-$&-.0-~]{1,15}")


def _wrong_host(host: object) -> str | None:
    """What is wrong with a host, if anything is."""
    if not isinstance(host, str) or not host:
        return "the host must be a name or an IP address"
    if ":" in host:
        return _wrong_v6(host)
    labels = host.removesuffix(".").split(".")
    if re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]*", labels[-1]):
        # No name ends so; getaddrinfo would take it for an IPv4 address in one of its old notations (inet_aton(3)).
        octets = re.fullmatch(
            r"(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})", host
        )
        if octets is None or any(int(octet) > 255 for octet in octets.groups()):
            return "this is not an IPv4 address of four numbers from 0 to 255, as in 127.0.0.1"
        return None
    if not host.isascii():
        return "the host must be written in ASCII (xn--... for other letters)"
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return "the host must be a name or an IP address"
    return None


def _wrong_v6(host: str) -> str | None:
    import ipaddress

    address, percent, zone = host.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return "this is not an IPv6 address, as in [::1]:9000"
    if percent and not _ZONE.fullmatch(zone):
        return "the zone after % must be an interface's name or number, as in [fe80::1%eth0]:9000"
    return None


def _parse_unix(text: str) -> UnixAddress:
    path, comma, option = text.removeprefix("unix:").partition(",")
    wrong = _wrong_unix_path(path)
    if wrong:
        reject("--bind", text, wrong)
    if not comma:
        return UnixAddress(path)
    if not option.startswith("mode="):
        reject("--bind", text, "after the comma only mode= can follow, as in ,mode=660 (a path must have no comma)")
    mode = option.removeprefix("mode=")
    if not re.fullmatch(r"0?[0-7]{3}", mode):
        reject("--bind", text, "mode must be three octal digits, as in mode=660")
    return UnixAddress(path, int(mode, 8))


def _wrong_unix_path(path: object) -> str | None:
    """What is wrong with the path of a unix socket, if anything is."""
    if not isinstance(path, str) or not path or "\0" in path or path.endswith("/"):
        return "the path of a socket in the file system is needed, as in unix:/run/echo.sock"
    if path.startswith("@"):
        return f"abstract sockets are not supported, as anybody may connect to them (for a file write unix:./{path})"
    if "," in path:
        return "the path must have no comma"
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        return "the path cannot be encoded for the file system"
    if size > UNIX_PATH_LIMIT:
        return f"the path has {size} bytes, and the system takes no more than {UNIX_PATH_LIMIT}"
    return None
