"""Settings: what a user chose, as frozen values that were checked when they were made.

Parsing of text (addresses, option strings) and the checks that need nothing but the values live here. Reading files,
resolving names and touching sockets do not. Whatever is refused is a ConfigError that names the option, its value, what
is wrong with it and what would be right.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import NoReturn

from .errors import ConfigError
from .events import visible

KIB = 1024
MIB = 1024 * KIB

LOOPS = ("asyncio", "uvloop")
LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")
#: Beyond these a value is a slip of the finger, and would cost the machine or never end.
MOST_WORKERS = 4096
MOST_BACKLOG = 2**20
#: A week. epoll_wait(2) counts milliseconds in an int, which ends after 24 days.
MOST_SECONDS = 7 * 24 * 3600
MOST_DESCRIPTOR = 2**31 - 1
#: The longest path of a unix socket in bytes (unix(7): sun_path has 108, with a final zero).
UNIX_PATH_LIMIT = 107


def _refuse(option: str, value: object, why: str) -> NoReturn:
    raise ConfigError(f"{option} {shown(value)}: {why}")


def shown(value: object) -> str:
    """A value as an error message names it: in one line, also when it is empty, huge or not text at all."""
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, str):
        return visible(value) if value.strip() else repr(visible(value))
    try:
        return visible(repr(value))
    except Exception:
        # Numbers of more than 4300 digits refuse, and so may what a caller has made up.
        return f"(a value of type {type(value).__name__})"


def _check_whole(option: str, value: object, least: int, most: int, meaning: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        _refuse(option, value, "must be a whole number")
    if value < least:
        _refuse(option, value, f"must be {least} or more{meaning}")
    if value > most:
        _refuse(option, value, f"must be {most} or less")


def _check_seconds(option: str, value: object, zero: bool) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        _refuse(option, value, "must be a number of seconds, such as 30 or 2.5")
    if not (value >= 0 if zero else value > 0):
        _refuse(option, value, f"must be {'0 seconds or more' if zero else 'more than 0 seconds'}")
    if value > MOST_SECONDS:
        _refuse(option, value, f"must be {MOST_SECONDS} seconds (a week) or less")


def _check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        _refuse(option, value, f"must be {', '.join(choices[:-1])} or {choices[-1]}")


# --- one connection ---------------------------------------------------------------------------------------------------

#: Those limits that the command has an option for.
_LIMIT_OPTIONS = {"handshake_timeout": "--handshake-timeout", "write_timeout": "--write-timeout"}


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection. Sizes in bytes, times in seconds; every one of them can be set.

    Raises ConfigError for what is not a positive number, and for times of more than a week.
    """

    read_limit: int = 64 * KIB
    """How far `readuntil` searches for its separator; the most a stream holds unread is this and one read more."""
    flush_at: int = 64 * KIB
    """Corked writes are sent at once when so many bytes wait."""
    drain_above: int = 64 * KIB
    """`drain()` waits while more than this is unsent, until a quarter of it is left."""
    pause_reads_above: int = 1 * MIB
    """Reads wait while more than this is unsent."""
    abort_above: int = 16 * MIB
    """The connection is aborted when more than this is unsent."""
    handshake_timeout: float = 5.0
    """For the whole TLS handshake, however its bytes arrive."""
    write_timeout: float = 60.0
    """How long unsent bytes may wait without the peer taking one."""
    linger_timeout: float = 5.0
    """How long a closed connection waits for the peer's end, so that what was written is not destroyed by a reset."""
    tls_shutdown_timeout: float = 1.0
    """The same when the peer owes a close_notify."""
    accept_batch: int = 8
    """How many connections are accepted per readiness event of a listening socket, at most."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            option = _LIMIT_OPTIONS.get(name, f"limit {name}")
            if name.endswith("_timeout"):
                _check_seconds(option, getattr(self, name), zero=False)
            else:
                _check_whole(option, getattr(self, name), 1, 2**62)


@dataclass(frozen=True, slots=True)
class TLS:
    """A certificate chain and its private key, as PEM files."""

    cert: str | os.PathLike[str]
    key: str | os.PathLike[str]

    def __post_init__(self) -> None:
        for option, value in (("--tls-cert", self.cert), ("--tls-key", self.key)):
            if not _is_path(value):
                _refuse(option, value, "must be the path of a PEM file")


def _is_path(value: object) -> bool:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    return isinstance(path, str) and path != "" and "\0" not in path


# --- addresses --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """`HOST:PORT`; `host` None is every interface on both families, port 0 one that is free.

    A host is a name (RFC 1123, and underscores), a dotted quad, or an IPv6 address with or without a zone. Nothing is
    resolved. Raises ConfigError.
    """

    host: str | None
    port: int

    def __post_init__(self) -> None:
        _check_whole("--bind port", self.port, 0, 65535)
        wrong = None if self.host is None else _wrong_host(self.host)
        if wrong:
            _refuse("--bind host", self.host, wrong)

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
            _refuse("--bind", f"unix:{self.path}", wrong)
        _check_whole("--bind unix mode", self.mode, 0, 0o777)

    def __str__(self) -> str:
        return f"unix:{self.path}" + ("" if self.mode == 0o600 else f",mode={self.mode:03o}")


@dataclass(frozen=True, slots=True)
class FdAddress:
    """`fd:N`: a listening socket that the parent process has passed on under this number. Raises ConfigError."""

    fd: int

    def __post_init__(self) -> None:
        _check_whole("--bind fd", self.fd, 3, MOST_DESCRIPTOR)

    def __str__(self) -> str:
        return f"fd:{self.fd}"


@dataclass(frozen=True, slots=True)
class SystemdAddress:
    """`systemd[:NAME]`: the sockets of that name that systemd has passed, or all of them. Raises ConfigError."""

    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[!-9;-~]{1,255}", self.name):
            _refuse("--bind", f"systemd:{self.name}", "the name must be that of FileDescriptorName=")

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
        _refuse("--bind", text, _FORMS)
    if text.startswith("unix:"):
        return _parse_unix(text)
    if text == "systemd" or text.startswith("systemd:"):
        return SystemdAddress(text.removeprefix("systemd").removeprefix(":") if ":" in text else None)
    if text.startswith("fd:"):
        digits = text.removeprefix("fd:")
        if not re.fullmatch(r"[0-9]{1,10}", digits):
            _refuse("--bind", text, "fd: wants the number of a descriptor, as in fd:3")
        return FdAddress(int(digits))
    return _parse_tcp(text)


def _parse_tcp(text: str) -> TCPAddress:
    host, colon, digits = text.rpartition(":")
    if not colon or text.endswith("]"):
        _refuse("--bind", text, f"the port is missing; {_FORMS}")
    if host == "*":
        _refuse("--bind", text, f"for all interfaces leave the host out, as in :{digits or 9000}")
    bracketed = re.fullmatch(r"\[(.*)\]", host, re.DOTALL)
    if bracketed:
        host = bracketed[1]
        if ":" not in host:
            _refuse("--bind", text, "brackets are for IPv6 addresses, as in [::1]:9000")
    elif ":" in host or "[" in host or "]" in host:
        _refuse("--bind", text, "an IPv6 address is written in brackets, as in [::1]:9000")
    if not re.fullmatch(r"[0-9]{1,5}", digits) or int(digits) > 65535:
        _refuse("--bind", text, "the port must be a number from 0 to 65535")
    wrong = _wrong_host(host) if host else None
    if wrong:
        _refuse("--bind", text, wrong)
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
        _refuse("--bind", text, wrong)
    if not comma:
        return UnixAddress(path)
    if not option.startswith("mode="):
        _refuse("--bind", text, "after the comma only mode= can follow, as in ,mode=660 (a path must have no comma)")
    mode = option.removeprefix("mode=")
    if not re.fullmatch(r"0?[0-7]{3}", mode):
        _refuse("--bind", text, "mode must be three octal digits, as in mode=660")
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


# --- all of them ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that `prefork serve` was told, except the service itself. The defaults are the command's.

    Raises ConfigError, which names the option and its value, for what cannot be right.
    """

    bind: tuple[Address, ...] = (TCPAddress(None, 9000),)
    workers: int = 0
    backlog: int = 1024
    tls: tuple[TLS, ...] = ()
    drain_timeout: float = 30.0
    hang_timeout: float = 30.0
    boot_timeout: float = 60.0
    user: str = ""
    group: str = ""
    """Who the workers are, by name or number; "" is who starts them."""
    umask: int | None = None
    control: str = ""
    """The path of the control socket; "" is one in a folder of this user's, "off" none."""
    ready_fd: int | None = None
    loop: str = "asyncio"
    log_format: str = "text"
    log_level: str = "info"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self._check_bind()
        _check_whole("--workers", self.workers, 0, MOST_WORKERS, " (0: one per usable CPU)")
        _check_whole("--backlog", self.backlog, 1, MOST_BACKLOG)
        if len(self.tls) > 1:
            _refuse("--tls-cert", os.fspath(self.tls[1].cert), "only one certificate can be given")
        _check_seconds("--drain-timeout", self.drain_timeout, zero=True)
        _check_seconds("--hang-timeout", self.hang_timeout, zero=False)
        _check_seconds("--boot-timeout", self.boot_timeout, zero=False)
        if self.umask is not None:
            _check_whole("--umask", self.umask, 0, 0o777)
        if "\0" in self.control:
            _refuse("--control", self.control, "must be a path, or off")
        if self.ready_fd is not None:
            _check_whole("--ready-fd", self.ready_fd, 0, MOST_DESCRIPTOR)
        _check_choice("--loop", self.loop, LOOPS)
        _check_choice("--log-format", self.log_format, LOG_FORMATS)
        _check_choice("--log-level", self.log_level, LOG_LEVELS)

    def _check_bind(self) -> None:
        if not self.bind:
            raise ConfigError("--bind: at least one address is needed")
        for position, address in enumerate(self.bind):
            free_port = isinstance(address, TCPAddress) and address.port == 0
            if not free_port and address in self.bind[:position]:
                _refuse("--bind", str(address), "given twice")
