"""Settings: what a user chose, as frozen values that were checked when they were made.

The checks that need nothing but the values live here; where the values come from, files and the world do not. Whatever
is refused is a ConfigError that names the option, its value, what is wrong with it and what would be right.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from .addresses import Address, TCPAddress
from .checks import MAX_DESCRIPTOR, check_choice, check_rate, check_seconds, check_whole, reject
from .errors import ConfigError

KIB = 1024
MIB = 1024 * KIB

LOOPS = ("asyncio", "uvloop")
LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")
#: Beyond these a value is a slip of the finger, and would cost the machine or never end.
MAX_WORKERS = 4096
MAX_BACKLOG = 2**20
#: Ages of workers are compared, not waited for: they may be longer than a timeout.
MAX_AGE = 10 * 366 * 24 * 3600


# --- one connection ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection, and of all that a server has. Sizes in bytes, times in seconds; every one can be set.

    None is no bound. Raises ConfigError for what is not a positive number, and for times of more than a week.
    """

    # --- one connection
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
    first_byte_timeout: float | None = None
    """From the moment a handler is there for it until the peer's first byte."""
    idle_timeout: float | None = None
    """How long a handler may wait for the next byte of its peer."""
    write_timeout: float = 60.0
    """How long unsent bytes may wait without the peer taking one."""
    max_age: float | None = None
    """From accept to the end, whatever happens in between."""
    keepalive: float | None = 300.0
    """Silence after which the kernel asks whether the peer is still there; one that is not is given up in a minute."""
    linger_timeout: float = 5.0
    """How long a closed connection waits for the peer's end, so that what was written is not destroyed by a reset."""
    tls_shutdown_timeout: float = 1.0
    """The same when the peer owes a close_notify."""

    # --- all of them
    accept_batch: int = 8
    """How many connections are accepted per readiness event of a listening socket, at most."""
    max_connections: int | None = None
    """Open at once, over all workers. None: what the descriptor limit of each process allows, less a reserve."""
    max_connections_per_ip: int | None = None
    """Open at once of one peer, an IPv4 address or an IPv6 network of 64 bits, over all workers."""
    accept_rate: float | None = None
    """Connections accepted in a second, over all workers; a second's worth may come at once."""
    at_limit: str = "wait"
    """With `max_connections` open: "wait" leaves further ones in the kernel's queue, "refuse" closes them at once."""
    refusal: bytes = b""
    """What a connection that is refused is sent before it is closed; nothing with TLS."""
    max_handshakes: int = 128
    """TLS handshakes that wait for their turn, in one worker; accepting waits while there are so many."""
    max_unsent: int = 256 * MIB
    """Bytes kept unsent for all connections of one worker, a piece that is sent in part counting whole: above it the
    connection that has most of them is aborted."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            option = f"--{name.replace('_', '-')}" if name in LIMIT_OPTIONS else f"limit {name}"
            if name == "at_limit":
                check_choice(option, value, AT_LIMIT)
            elif name == "refusal":
                if not isinstance(value, bytes) or len(value) > MAX_REFUSAL:
                    reject(option, value, f"must be at most {MAX_REFUSAL} bytes")
            elif value is None and name in _OPTIONAL_LIMITS:
                continue
            elif name == "accept_rate":
                check_rate(option, value)
            elif name.endswith("_timeout") or name in ("max_age", "keepalive"):
                check_seconds(option, value, zero=False)
            else:
                check_whole(option, value, 1, 2**62)


#: Those limits that the command has an option for.
LIMIT_OPTIONS = (
    "handshake_timeout",
    "first_byte_timeout",
    "idle_timeout",
    "write_timeout",
    "max_age",
    "max_connections",
    "max_connections_per_ip",
    "accept_rate",
    "at_limit",
    "refusal",
    "max_handshakes",
    "max_unsent",
)
_OPTIONAL_LIMITS = (
    "first_byte_timeout",
    "idle_timeout",
    "max_age",
    "keepalive",
    "max_connections",
    "max_connections_per_ip",
    "accept_rate",
)
AT_LIMIT = ("wait", "refuse")
#: Beyond this it is no word of farewell: it would not fit into a fresh socket's buffer.
MAX_REFUSAL = 4096


@dataclass(frozen=True, slots=True)
class TLS:
    """A certificate chain and its private key, as PEM files."""

    cert: str | os.PathLike[str]
    key: str | os.PathLike[str]

    def __post_init__(self) -> None:
        for option, value in (("--tls-cert", self.cert), ("--tls-key", self.key)):
            if not _is_path(value):
                reject(option, value, "must be the path of a PEM file")


def _is_path(value: object) -> bool:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    return isinstance(path, str) and path != "" and "\0" not in path


# --- all of them ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that `prefork serve` was told, except the service itself. The defaults are the command's.

    Raises ConfigError, which names the option and its value, for what cannot be right.
    """

    bind: tuple[Address, ...] = (TCPAddress(None, 9000),)
    workers: int = 0
    backlog: int = 1024
    reuse_port: bool = False
    """A socket for each worker and address (SO_REUSEPORT), all of them the supervisor's."""
    tls: tuple[TLS, ...] = ()
    drain_timeout: float = 30.0
    hang_timeout: float = 30.0
    boot_timeout: float = 60.0
    user: str = ""
    group: str = ""
    """Who the workers are, by name or number; "" is who starts them."""
    insecure_paths: bool = False
    """Whether what the supervisor believes and runs may be what the workers' user can change."""
    leave_daemons: bool = False
    """Whether what a worker has started, and has left its process group, may outlive the supervisor."""
    umask: int | None = None
    pidfile: str = ""
    """Where the supervisor's number is written, and which no second one may have; "" is nowhere."""
    max_connections_served: int | None = None
    max_worker_age: float | None = None
    max_worker_rss: int | None = None
    """After so many connections, seconds or resident bytes a worker is replaced; None: never for that."""
    control: str = ""
    """The path of the control socket; "" is one in a folder of this user's, "off" none."""
    ready_fd: int | None = None
    loop: str = "asyncio"
    log_format: str = "text"
    log_level: str = "info"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self._check_bind()
        check_whole("--workers", self.workers, 0, MAX_WORKERS, " (0: one per usable CPU)")
        check_whole("--backlog", self.backlog, 1, MAX_BACKLOG)
        if len(self.tls) > 1:
            reject("--tls-cert", os.fspath(self.tls[1].cert), "only one certificate can be given")
        check_seconds("--drain-timeout", self.drain_timeout, zero=True)
        check_seconds("--hang-timeout", self.hang_timeout, zero=False)
        check_seconds("--boot-timeout", self.boot_timeout, zero=False)
        if self.umask is not None:
            check_whole("--umask", self.umask, 0, 0o777)
        for option, path in (("--control", self.control), ("--pidfile", self.pidfile)):
            if "\0" in path:
                reject(option, path, "must be a path")
        self._check_lifetime()
        if self.ready_fd is not None:
            check_whole("--ready-fd", self.ready_fd, 0, MAX_DESCRIPTOR)
        check_choice("--loop", self.loop, LOOPS)
        check_choice("--log-format", self.log_format, LOG_FORMATS)
        check_choice("--log-level", self.log_level, LOG_LEVELS)

    def _check_lifetime(self) -> None:
        if self.max_connections_served is not None:
            check_whole("--max-connections-served", self.max_connections_served, 1, 2**62)
        if self.max_worker_age is not None:
            check_seconds("--max-worker-age", self.max_worker_age, zero=False, most=MAX_AGE)
        if self.max_worker_rss is not None:
            check_whole("--max-worker-rss", self.max_worker_rss, MIB, 2**62, " bytes (no worker is that small)")

    def _check_bind(self) -> None:
        if not self.bind:
            raise ConfigError("--bind: at least one address is needed")
        for position, address in enumerate(self.bind):
            free_port = isinstance(address, TCPAddress) and address.port == 0
            if not free_port and address in self.bind[:position]:
                reject("--bind", str(address), "given twice")
