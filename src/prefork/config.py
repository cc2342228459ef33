"""Settings: what a user chose, as frozen values that are checked when they are made.

Each field stands beside its check. Nothing outside the values is looked at here; see `cli/sources.py` for where they
come from. A wrong value raises ConfigError with the option, the value, what is wrong and what would be right.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict

from .addresses import Address, TCPAddress, UnixAddress, parse_address
from .checks import (
    MAX_DESCRIPTOR,
    check_bytes,
    check_choice,
    check_flag,
    check_int,
    check_protocols,
    check_rate,
    check_seconds,
    check_text,
    reject,
)
from .errors import ConfigError
from .program import Program, ReadyKind, ReadyWhen
from .proxies import PROXY_PROTOCOLS, ProxySource, check_proxies, proxy_sources
from .text import did_you_mean, escape_controls

KIB = 1024
MIB = 1024 * KIB

#: A larger value is a typing error, and would exhaust the machine or never end.
MAX_WORKERS = 4096
MAX_BACKLOG = 2**20
MAX_CERTIFICATES = 1000
MAX_INT = 2**62
#: Ten years. The age of a worker is compared, not waited for, so it may be longer than a timeout.
MAX_AGE = 10 * 366 * 24 * 3600
#: A longer refusal would not fit into the send buffer of a fresh socket.
MAX_REFUSAL = 4096


def _option(default: Any, check: Callable[..., None], none: bool = False, command: bool = True, **bounds: Any) -> Any:
    """Define a field and its check; None passes if `none` or the default, `command` is false for Python-only limits."""
    metadata = {"check": functools.partial(check, **bounds), "none": none or default is None, "command": command}
    return field(default=default, metadata=metadata)


_positive = functools.partial(check_int, minimum=1, maximum=MAX_INT)
_timeout = functools.partial(check_seconds, zero=False)


def _check_delay(option: str, value: object) -> None:
    if value != "auto":
        check_seconds(option, value, zero=True)


def _check_fields(values: Limits | Settings) -> None:
    for each in fields(values):
        value = getattr(values, each.name)
        if each.metadata and not (value is None and each.metadata["none"]):
            name = option_of(each.name) if each.metadata["command"] else f"{type(values).__name__}.{each.name}"
            each.metadata["check"](name, value)


def option_of(name: str) -> str:
    """Return the option of the command for a field: `--idle-timeout` for `idle_timeout`."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection and of a whole server, to pass as `limits` to `serve` and `TCPServer`.

    Sizes are bytes and times are seconds; None means no bound. Raises ConfigError for a value that is not positive,
    and for a time of more than a week.
    """

    # --- one connection
    read_limit: int = _option(64 * KIB, _positive)
    """Maximum length of what `readuntil` and `readline` return; a stream buffers at most this and one more read."""
    flush_at: int = _option(64 * KIB, _positive, command=False)
    """Corked writes are sent at once when this much is buffered."""
    drain_above: int = _option(64 * KIB, _positive, command=False)
    """`drain()` waits while more than this is unsent, until 25 % of it is left."""
    pause_reads_above: int = _option(1 * MIB, _positive, command=False)
    """Reads wait while more than this is unsent."""
    abort_above: int = _option(16 * MIB, _positive, command=False)
    """The connection is aborted when more than this is unsent."""
    handshake_timeout: float = _option(5.0, _timeout)
    """Maximum time of the whole TLS handshake."""
    proxy_timeout: float = _option(10.0, _timeout)
    """Maximum time from accept to the end of the PROXY header."""
    first_byte_timeout: float | None = _option(None, _timeout)
    """Maximum time from the start of the handler to the first byte of the peer."""
    idle_timeout: float | None = _option(None, _timeout)
    """Maximum time that a handler waits for the next byte of the peer."""
    write_timeout: float = _option(60.0, _timeout)
    """Maximum time that unsent bytes wait while the peer reads none of them."""
    max_age: float | None = _option(None, _timeout)
    """Maximum time from accept to close."""
    keepalive: float | None = _option(300.0, _timeout, command=False, none=True)
    """Silence after which the kernel probes the peer; a dead peer is given up a minute later."""
    linger_timeout: float = _option(5.0, _timeout, command=False)
    """Maximum time that a closed connection waits for the peer to close, because a reset would destroy sent data."""
    tls_shutdown_timeout: float = _option(1.0, _timeout, command=False)
    """Maximum time that a closed connection waits for the close_notify of the peer."""

    # --- the whole server
    accept_batch: int = _option(8, _positive, command=False)
    """Maximum number of connections accepted per readiness event of a listening socket."""
    max_connections: int | None = _option(None, _positive)
    """Maximum number of open connections of all workers. None: the descriptor limit of each process, less a reserve."""
    max_connections_per_ip: int | None = _option(None, _positive)
    """Maximum number of open connections per IPv4 address or IPv6 /64 network, in all workers."""
    accept_rate: float | None = _option(None, check_rate)
    """Connections accepted per second by all workers; the connections of one second may come at once."""
    at_limit: Literal["wait", "refuse"] = _option("wait", check_choice, choices=("wait", "refuse"))
    """At `max_connections`: "wait" leaves new connections in the kernel's queue, "refuse" closes them at once."""
    refusal: bytes = _option(b"", check_bytes, maximum=MAX_REFUSAL)
    """Sent to a refused connection before it is closed, unless it uses TLS."""
    max_handshakes: int = _option(128, _positive)
    """Maximum number of TLS handshakes of a worker that wait for the CPU; at this number it stops accepting. A
    handshake that waits for bytes from its client does not count."""
    max_unsent: int = _option(256 * MIB, _positive)
    """Maximum number of unsent bytes per worker; above this the connection with the most is aborted. A buffer that is
    sent in part counts in full."""

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True, slots=True)
class TLS:
    """A certificate chain and its private key, as paths of PEM files. Raises ConfigError for what is no path."""

    cert: str | os.PathLike[str]
    key: str | os.PathLike[str]

    def __post_init__(self) -> None:
        for option, value in (("--tls-cert", self.cert), ("--tls-key", self.key)):
            if not _is_path(value):
                reject(option, value, "must be the path of a PEM file")


def _is_path(value: object) -> bool:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    return isinstance(path, str) and path != "" and "\0" not in path


#: Fields of `Settings` and `Limits` that `prefork run` has no use for, because the program decides it itself.
SERVE_ONLY = frozenset(
    {
        *("reuse_port", "tls", "tls_cert", "tls_key", "tls_strict_sni", "tls_client_ca", "tls_client", "tls_profile"),
        *("tls_ticket_key_file", "tls_watch", "alpn", "loop", "streams", "traceback"),
        *("read_limit", "max_unsent", "max_handshakes", "refusal"),
    }
)
#: Fields that only `prefork run` has.
RUN_ONLY = frozenset({"ready", "exclusive", "allow_bind"})


@dataclass(frozen=True, slots=True)
class Settings:
    """All options of `prefork serve` and `prefork run`, without the service. The defaults are those of the commands.

    Raises ConfigError for a value that cannot be right.
    """

    bind: tuple[Address, ...] = (TCPAddress(None, 9000),)
    workers: int = _option(0, check_int, minimum=0, maximum=MAX_WORKERS, meaning=" (0: one per usable CPU)")
    backlog: int = _option(1024, check_int, minimum=1, maximum=MAX_BACKLOG)
    reuse_port: bool = _option(False, check_flag)
    """One listening socket per worker and address (SO_REUSEPORT); the supervisor keeps all of them open."""
    tls: tuple[TLS, ...] = ()
    """Certificates, of which the server name that a client sends chooses; the first is the default."""
    tls_strict_sni: bool = _option(False, check_flag)
    """Reject clients that name no server, or one that no certificate is for."""
    tls_client_ca: str = _option("", check_text)
    """PEM file of the authorities whose certificates clients must present; "" asks clients for none."""
    tls_client: Literal["required", "optional"] = _option("required", check_choice, choices=("required", "optional"))
    """With `tls_client_ca`: whether a client without a certificate is rejected."""
    tls_profile: Literal["modern", "intermediate"] = _option(
        "intermediate", check_choice, choices=("modern", "intermediate")
    )
    """TLS 1.3 only, or TLS 1.2 as well."""
    alpn: tuple[str, ...] = ()
    """Application protocols in order of preference (RFC 7301)."""
    proxy_protocol: Literal["off", "v1", "v2", "any"] = _option("off", check_choice, choices=PROXY_PROTOCOLS)
    """Versions of the PROXY header that each connection must begin with; "off": none is read."""
    proxy_from: tuple[ProxySource, ...] = ()
    """The proxies that may connect while `proxy_protocol` is on."""
    tls_ticket_key_file: str = _option("", check_text)
    """File of the keys of session tickets, in HAProxy's format; "" has them made for this server only."""
    tls_watch: Literal["auto", "on", "off"] = _option("auto", check_choice, choices=("auto", "on", "off"))
    """Use the files of TLS again as soon as they change; "auto" means those on this machine only."""
    drain_timeout: float = _option(30.0, check_seconds, zero=True)
    """From a stop until open connections are aborted."""
    drain_delay: float | Literal["auto"] = _option(0.0, _check_delay)
    """From the request to stop until connections are no longer accepted, so that balancers notice; "auto" ends when
    no new connection has come for a while."""
    reload_drain_timeout: float | None = _option(None, check_seconds, zero=True)
    """The same in workers that a reload, an upgrade, recycling or `scale` replaces or ends; None means never."""
    stop_timeout: float = _option(10.0, _timeout)
    """For the `stop()` of a lifespan object."""
    hang_timeout: float = _option(30.0, _timeout)
    boot_timeout: float = _option(60.0, _timeout)
    user: str = _option("", check_text)
    """User of the workers, by name or number; "" is the user who starts the server."""
    group: str = _option("", check_text)
    """Group of the workers, by name or number; "" is the group of `user`."""
    insecure_paths: bool = _option(False, check_flag)
    """Accept code, certificates and settings that the user of the workers can change."""
    leave_daemons: bool = _option(False, check_flag)
    """Let processes that left the process group of their worker outlive the supervisor."""
    umask: int | None = _option(None, check_int, minimum=0, maximum=0o777)
    pidfile: str = _option("", check_text)
    """File for the pid of the supervisor, which locks it; "" is no file."""
    max_connections_served: int | None = _option(None, _positive)
    """A worker is recycled after this number of connections; None means never."""
    max_worker_age: float | None = _option(None, check_seconds, zero=False, maximum=MAX_AGE)
    """A worker is recycled after this number of seconds; None means never."""
    max_worker_rss: int | None = _option(
        None, check_int, minimum=MIB, maximum=MAX_INT, meaning=" bytes (no worker is that small)"
    )
    """A worker is recycled when its resident memory exceeds this number of bytes; None means never."""
    control: str = _option("", check_text)
    """Path of the control socket; "" is one in a directory of the current user, "off" is none."""
    metrics: Address | None = None
    """Where metrics and the status page are served, by a process of their own; None is nowhere."""
    agent: Address | None = None
    """Where agent checks of HAProxy are answered, by the same process; None is nowhere."""
    ready_fd: int | None = _option(None, check_int, minimum=0, maximum=MAX_DESCRIPTOR)
    """Descriptor that receives `READY` and a newline once every worker accepts."""
    reload: bool = _option(False, check_flag)
    """Watch the sources, and replace the workers when a file changes."""
    traceback: bool = _option(False, check_flag)
    """Log the traceback of a service that cannot be imported or started."""
    loop: Literal["asyncio", "uvloop"] = _option("asyncio", check_choice, choices=("asyncio", "uvloop"))
    streams: Literal["prefork", "asyncio"] = _option("prefork", check_choice, choices=("prefork", "asyncio"))
    """What serves `(reader, writer)` handlers: prefork's stream, or the classes of asyncio itself."""
    log_format: Literal["text", "json"] = _option("text", check_choice, choices=("text", "json"))
    log_level: Literal["debug", "info", "warning", "error"] = _option(
        "info", check_choice, choices=("debug", "info", "warning", "error")
    )
    access_log: str = _option("", check_text)
    """File with a line for each connection that has ended; "-" is standard output, "" is none."""
    limits: Limits = field(default_factory=Limits)
    program: Program | None = None
    """What `prefork run` runs; None: this is `prefork serve`. A program binds what `bind` does not name itself."""
    ready: ReadyWhen = field(default_factory=ReadyWhen)
    exclusive: tuple[Address, ...] = ()
    """Addresses of a program that only the worker in slot 0 listens on."""
    allow_bind: tuple[Address, ...] = ()
    """Addresses of a program that are bound with the rights of the supervisor, and not of `user`."""

    def __post_init__(self) -> None:
        _check_fields(self)
        if not isinstance(self.limits, Limits):
            reject("limits", self.limits, "must be a prefork.Limits")
        self._check_tls()
        check_proxies(self.proxy_protocol, self.proxy_from)
        if not self.bind and self.program is None:
            raise ConfigError("--bind: at least one address is needed", option="--bind")
        for position, address in enumerate(self.bind):
            if not _is_free_port(address) and address in self.bind[:position]:
                reject("--bind", str(address), "given twice")
        options = [("--exclusive", self.exclusive), ("--allow-bind", self.allow_bind)]
        options += [(option_of(each), (getattr(self, each),)) for each in ("metrics", "agent") if getattr(self, each)]
        for option, addresses in options:
            for address in addresses:
                if not isinstance(address, TCPAddress | UnixAddress):
                    reject(option, str(address), "must be HOST:PORT, [V6]:PORT, :PORT or unix:PATH")
        if self.agent is not None and self.agent == self.metrics and not _is_free_port(self.agent):
            reject("--agent", str(self.agent), "--metrics has it")
        if self.ready.kind is ReadyKind.DELAY and self.ready.number >= self.boot_timeout:
            reject("--ready", str(self.ready), f"must be less than --boot-timeout ({self.boot_timeout:g} s)")

    def _check_tls(self) -> None:
        if not all(isinstance(each, TLS) for each in self.tls):
            reject("tls", self.tls[0], "must be a prefork.TLS, or several")
        if len(self.tls) > MAX_CERTIFICATES:
            reject("--tls-cert", os.fspath(self.tls[-1].cert), f"at most {MAX_CERTIFICATES} certificates can be given")
        check_protocols("--alpn", self.alpn)
        if self.tls_client == "optional" and not self.tls_client_ca:
            reject("--tls-client", self.tls_client, "--tls-client-ca is missing")
        for name in ("tls_strict_sni", "tls_client_ca", "alpn", "tls_profile", "tls_ticket_key_file"):
            value = getattr(self, name)
            if not self.tls and value and value != "intermediate":
                raise ConfigError(f"{option_of(name)}: --tls-cert is missing", option=option_of(name))


def _is_free_port(address: Address) -> bool:
    """Return whether the kernel chooses the port."""
    return isinstance(address, TCPAddress) and address.port == 0


# --- as a program gives them ------------------------------------------------------------------------------------------


class ServeOptions(TypedDict, total=False):
    """The options of `prefork.serve`: the fields of `Settings`, with addresses as text."""

    bind: str | Sequence[str]
    workers: int
    backlog: int
    reuse_port: bool
    tls: TLS | Sequence[TLS] | None
    tls_strict_sni: bool
    tls_client_ca: str | os.PathLike[str]
    tls_client: Literal["required", "optional"]
    tls_profile: Literal["modern", "intermediate"]
    alpn: Sequence[str]
    proxy_protocol: Literal["off", "v1", "v2", "any"]
    proxy_from: str | Sequence[str]
    tls_ticket_key_file: str | os.PathLike[str]
    tls_watch: Literal["auto", "on", "off"]
    drain_timeout: float
    drain_delay: float | Literal["auto"]
    reload_drain_timeout: float | None
    stop_timeout: float
    hang_timeout: float
    boot_timeout: float
    user: str
    group: str
    insecure_paths: bool
    leave_daemons: bool
    umask: int | None
    pidfile: str | os.PathLike[str]
    max_connections_served: int | None
    max_worker_age: float | None
    max_worker_rss: int | None
    control: str | os.PathLike[str]
    metrics: str | None
    agent: str | None
    ready_fd: int | None
    reload: bool
    traceback: bool
    loop: Literal["asyncio", "uvloop"]
    streams: Literal["prefork", "asyncio"]
    log_format: Literal["text", "json"]
    log_level: Literal["debug", "info", "warning", "error"]
    access_log: str | os.PathLike[str]
    limits: Limits


def settings_of(options: ServeOptions) -> Settings:
    """Return the settings of a program's options. Raises ConfigError, also for an option that does not exist."""
    values: dict[str, Any] = dict(options)
    known = [each.name for each in fields(Settings) if each.name not in RUN_ONLY | {"program"}]
    for name in values:
        if name in Limits.__slots__:
            raise ConfigError(f"serve: {name} is a limit: give it as limits=prefork.Limits({name}=...)")
        if name in ("tls_cert", "tls_key"):
            raise ConfigError(f"serve: there is no option {name}: give both files as tls=prefork.TLS(cert, key)")
        if name not in known:
            raise ConfigError(f"serve: there is no option {escape_controls(name)}{did_you_mean(name, known)}")
    if "bind" in values:
        values["bind"] = _addresses(values["bind"])
    if "proxy_from" in values:
        values["proxy_from"] = proxy_sources(values["proxy_from"])
    for name in ("metrics", "agent"):
        if isinstance(values.get(name), str):
            values[name] = local_address(option_of(name), values[name])
    if "tls" in values:
        # An empty list is more likely a mistake than the wish to serve in the clear.
        if values["tls"] is not None and not _several(values["tls"]):
            reject("tls", values["tls"], "must be a prefork.TLS, or several")
        values["tls"] = _several(values["tls"])
    if "alpn" in values:
        values["alpn"] = _several(values["alpn"])
    for name in ("pidfile", "control", "access_log", "tls_client_ca", "tls_ticket_key_file"):
        if isinstance(values.get(name), os.PathLike):
            values[name] = os.fspath(values[name])
    return Settings(**values)


def _several(value: object) -> tuple[Any, ...]:
    """Return the items of a list, or `value` as the only one; () for None."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return () if value is None else (value,)


def local_address(option: str, text: str) -> Address:
    """Return the address of --metrics or --agent. Without a host it is that of this machine only, because what is
    served there shows what runs here. Raises ConfigError.
    """
    try:
        address = parse_address(text)
    except ConfigError as exc:
        raise ConfigError(str(exc).replace("--bind", option), option=option) from None
    if isinstance(address, TCPAddress) and address.host is None:
        return TCPAddress("127.0.0.1", address.port)
    return address


def _addresses(bind: object) -> tuple[Address, ...]:
    texts = [bind] if isinstance(bind, str) else bind
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        reject("--bind", bind, 'must be text, or a list of text, such as ":9000"')
    return tuple(parse_address(text) for text in texts)
