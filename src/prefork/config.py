"""Settings: what a user chose, as frozen values that were checked when they were made.

Parsing of text (addresses, option strings) and the checks that need nothing but the values live here. Reading files,
resolving names and touching sockets do not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from .errors import ConfigError

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection. Sizes in bytes, times in seconds; every one of them can be set."""

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
            if not getattr(self, name) > 0:
                raise ConfigError(f"limit {name}: {getattr(self, name)!r} is not a positive number")


@dataclass(frozen=True, slots=True)
class TLS:
    """A certificate chain and its private key, as PEM files."""

    cert: str | os.PathLike[str]
    key: str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """`HOST:PORT`; `host` None is every interface on both families."""

    host: str | None
    port: int

    def __str__(self) -> str:
        if self.host is None:
            return f":{self.port}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """`unix:PATH[,mode=OCTAL]`."""

    path: str
    mode: int = 0o600

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TCPAddress | UnixAddress


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that `prefork serve` was told, except the service itself. The defaults are the command's."""

    bind: tuple[Address, ...] = (TCPAddress(None, 9000),)
    workers: int = 0
    backlog: int = 1024
    tls: tuple[TLS, ...] = ()
    drain_timeout: float = 30.0
    ready_fd: int | None = None
    loop: str = "asyncio"
    log_format: str = "text"
    log_level: str = "info"
    limits: Limits = field(default_factory=Limits)
