"""The options of `serve`, `check` and `run`: one table with their names, their groups, and their help.

How text becomes a value stands in `values.py`, what a value may be in `config.py`, and where the text comes from in
`sources.py`. click gets every option as text, because its own errors name neither the cause nor the cure.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from ..addresses import parse_address
from ..config import KIB, MIB, RUN_ONLY, SERVE_ONLY, Limits, Settings, local_address, option_of
from ..program import parse_ready
from ..proxies import parse_proxy_source
from .completion import completer
from .help import GroupedOption
from .values import (
    optional,
    parse_delay,
    parse_flag,
    parse_for,
    parse_int,
    parse_number,
    parse_octal,
    parse_seconds,
    parse_size,
    unescape,
)

TARGET_FORMS = "module:attribute or path/to/file.py:attribute, such as echo:handle"

#: Given on the command line, by field; an option that was not given is missing.
Given = Mapping[str, Sequence[str]]


class Group(enum.Enum):
    """What an option is about: its heading in the help and in the manual page, in this order."""

    LISTENING = "Listening"
    PROXY = "Behind a proxy"
    TLS = "TLS"
    LIMITS = "Limits"
    TIMEOUTS = "Timeouts"
    WORKERS = "Workers and reload"
    PRIVILEGES = "Privileges"
    OBSERVING = "Observing"
    DEVELOPMENT = "Development"


@dataclass(frozen=True, slots=True)
class Option:
    """One option, whose value goes to the field of its name in `Settings` or `Limits`."""

    field: str
    """The name in Python, in files, and after PREFORK_ in the environment."""
    group: Group
    metavar: str
    help: str
    parse: Callable[[str, str], Any] = lambda option, value: value
    repeatable: bool = False
    """Whether it may be given more than once; its value is a list."""
    separator: str = ""
    """What stands between the values of a list that is one text; in a file it may be a list as well."""
    short: str = ""
    shown_default: str | None = None
    """The default in the help, if not the value; "" shows none."""
    bare_value: str | None = None
    """What the option means without a value; None: it needs one."""

    @property
    def name(self) -> str:
        return option_of(self.field)

    @property
    def is_limit(self) -> bool:
        return self.field in Limits.__slots__

    def of_command(self, command: str) -> bool:
        """Return whether `prefork COMMAND` has this option."""
        return self.field not in (SERVE_ONLY if command == "run" else RUN_ONLY)

    def default_text(self, command: str) -> str:
        if command == "run" and self.field == "bind":
            return "what the program binds"
        if self.shown_default is not None:
            return self.shown_default
        value = getattr(Limits() if self.is_limit else Settings(), self.field)
        if value is None:
            return "off"
        if self.parse is parse_size:
            return f"{value // MIB}M" if value % MIB == 0 else f"{value // KIB}K"
        unit = "s" if self.metavar == "TIME" else ""
        return f"{value:g}{unit}" if isinstance(value, float) else str(value)

    def parameter(self, command: str) -> click.Option:
        if self.parse is parse_flag:
            names = [f"{self.name}/--no-{self.name[2:]}"]
            return GroupedOption(names, default=None, help=self.help, group=self.group.value)
        default = self.default_text(command)
        # Given to click only if it is meant: None would make every option a flag.
        bare = {} if self.bare_value is None else {"is_flag": False, "flag_value": self.bare_value}
        return GroupedOption(
            [self.name, self.short] if self.short else [self.name],
            metavar=self.metavar,
            multiple=self.repeatable,
            help=self.help + (f"  [default: {default}]" if default else ""),
            group=self.group.value,
            shell_complete=completer(self.field, self.metavar),
            **bare,
        )


OPTIONS = (
    Option(
        "bind",
        Group.LISTENING,
        "ADDR",
        "Listen on HOST:PORT, [V6]:PORT, :PORT (all interfaces, IPv4 and IPv6), unix:PATH[,mode=660], fd:N (inherited "
        "descriptor) or systemd[:NAME]. Repeatable; PREFORK_BIND separates addresses by spaces.",
        lambda option, value: parse_address(value),
        repeatable=True,
        short="-b",
        shown_default=" ".join(map(str, Settings().bind)),
    ),
    Option("backlog", Group.LISTENING, "N", "Length of the kernel's accept queue per listening socket.", parse_int),
    Option(
        "reuse_port", Group.LISTENING, "", "Give each worker a listening socket of its own (SO_REUSEPORT).", parse_flag
    ),
    Option(
        "exclusive",
        Group.LISTENING,
        "ADDR",
        "An address of the program that only one worker has, the first. Repeatable.",
        parse_for,
        repeatable=True,
        shown_default="",
    ),
    Option(
        "allow_bind",
        Group.LISTENING,
        "ADDR",
        "With --user: an address that the program may bind with the supervisor's rights. Repeatable.",
        parse_for,
        repeatable=True,
        shown_default="",
    ),
    Option(
        "proxy_protocol",
        Group.PROXY,
        "NAME",
        "Version of the PROXY header that each connection must begin with, before TLS: v1, v2 or any; off reads none.",
    ),
    Option(
        "proxy_from",
        Group.PROXY,
        "CIDR",
        "Network or address of proxies, unix: for those on unix sockets, or anywhere. Other peers are closed at once. "
        "Repeatable.",
        lambda option, value: parse_proxy_source(value),
        repeatable=True,
        shown_default="",
    ),
    Option("proxy_timeout", Group.PROXY, "TIME", "Close a connection whose PROXY header takes longer.", parse_seconds),
    Option(
        "tls_cert",
        Group.TLS,
        "FILE",
        "PEM file of a certificate chain; turns TLS on. Several are chosen by the server name that a client sends; the "
        "first is the default.",
        repeatable=True,
        shown_default="",
    ),
    Option(
        "tls_key", Group.TLS, "FILE", "PEM file of its private key, not encrypted.", repeatable=True, shown_default=""
    ),
    Option(
        "tls_strict_sni",
        Group.TLS,
        "",
        "Reject clients that name no server, or one that no certificate is for.",
        parse_flag,
    ),
    Option(
        "tls_client_ca",
        Group.TLS,
        "FILE",
        "PEM file of the authorities whose certificates clients must present.",
        shown_default="",
    ),
    Option("tls_client", Group.TLS, "NAME", "With --tls-client-ca: certificates of clients are required or optional."),
    Option("tls_profile", Group.TLS, "NAME", "modern (TLS 1.3 only) or intermediate (TLS 1.2 as well)."),
    Option(
        "alpn",
        Group.TLS,
        "NAMES",
        "Application protocols in order of preference, such as h2,http/1.1.",
        lambda option, value: value.split(","),
        separator=",",
        shown_default="",
    ),
    Option(
        "tls_ticket_key_file",
        Group.TLS,
        "FILE",
        "Keys of session tickets, as HAProxy's tls-ticket-keys: clients resume after a restart and on other machines.",
        shown_default="",
    ),
    Option(
        "tls_watch",
        Group.TLS,
        "NAME",
        "Use changed certificates and keys at once: auto (files on this machine), on (those on others, too) or off.",
    ),
    Option("handshake_timeout", Group.TLS, "TIME", "Abort a TLS handshake that takes longer.", parse_seconds),
    Option(
        "max_handshakes",
        Group.TLS,
        "N",
        "TLS handshakes waiting for the CPU; at this number a worker stops accepting.",
        parse_int,
    ),
    Option(
        "max_connections",
        Group.LIMITS,
        "N",
        "Maximum number of open connections of all workers.",
        optional(parse_int),
        shown_default="what the descriptor limit allows",
    ),
    Option(
        "max_connections_per_ip",
        Group.LIMITS,
        "N",
        "Maximum number of open connections per client address (IPv6: per /64).",
        optional(parse_int),
    ),
    Option(
        "accept_rate", Group.LIMITS, "R", "Maximum number of connections accepted per second.", optional(parse_number)
    ),
    Option(
        "at_limit", Group.LIMITS, "NAME", "At --max-connections: wait (leave clients in the accept queue) or refuse."
    ),
    Option(
        "refusal",
        Group.LIMITS,
        "TEXT",
        r"Text sent to a refused client, such as '421 busy\r\n'.",
        unescape,
        shown_default="",
    ),
    Option(
        "max_unsent",
        Group.LIMITS,
        "BYTES",
        "Maximum of unsent data per worker; above this the connection with the most is aborted.",
        parse_size,
    ),
    Option("read_limit", Group.LIMITS, "BYTES", "Maximum length of a line that a handler reads.", parse_size),
    Option(
        "first_byte_timeout",
        Group.TIMEOUTS,
        "TIME",
        "Close a connection that sends no byte for this long.",
        optional(parse_seconds),
    ),
    Option(
        "idle_timeout",
        Group.TIMEOUTS,
        "TIME",
        "Close a connection whose handler waits longer for the next byte.",
        optional(parse_seconds),
    ),
    Option(
        "write_timeout",
        Group.TIMEOUTS,
        "TIME",
        "Abort a connection whose peer reads nothing for this long.",
        parse_seconds,
    ),
    Option(
        "max_age",
        Group.TIMEOUTS,
        "TIME",
        "Close a connection this long after it was accepted.",
        optional(parse_seconds),
    ),
    Option(
        "drain_timeout",
        Group.TIMEOUTS,
        "TIME",
        "Time for open connections to end at a stop; then they are aborted.",
        parse_seconds,
    ),
    Option(
        "drain_delay",
        Group.TIMEOUTS,
        "TIME",
        "At a stop, accept for this long before the drain, while /readyz and --agent say no, so that balancers notice; "
        "auto: until no new connection has come for 3 s, at most 30 s.",
        parse_delay,
    ),
    Option(
        "reload_drain_timeout",
        Group.TIMEOUTS,
        "TIME",
        "Time for open connections to end in old workers, at a reload, upgrade, recycling or scale; then they are "
        "aborted.",
        optional(parse_seconds),
    ),
    Option("stop_timeout", Group.TIMEOUTS, "TIME", "Time for stop() of the service.", parse_seconds),
    Option(
        "hang_timeout",
        Group.TIMEOUTS,
        "TIME",
        "Replace a worker whose event loop is blocked for longer.",
        parse_seconds,
    ),
    Option(
        "boot_timeout",
        Group.TIMEOUTS,
        "TIME",
        "Time for a new worker to start accepting, start() of the service included.",
        parse_seconds,
    ),
    Option("workers", Group.WORKERS, "N", "Number of worker processes; 0: one per usable CPU.", parse_int, short="-w"),
    Option("loop", Group.WORKERS, "NAME", "Event loop of workers: asyncio or uvloop."),
    Option("streams", Group.WORKERS, "NAME", "Streams of (reader, writer) handlers: prefork or asyncio."),
    Option(
        "ready",
        Group.WORKERS,
        "WHEN",
        "A worker is ready when it listens as its predecessor did (listen), sends READY=1 (notify), writes a line to a "
        "descriptor (fd:N), or after some time (delay:TIME).",
        parse_ready,
    ),
    Option(
        "max_connections_served",
        Group.WORKERS,
        "N",
        "Recycle a worker after this number of connections.",
        optional(parse_int),
    ),
    Option("max_worker_age", Group.WORKERS, "TIME", "Recycle a worker after this time.", optional(parse_seconds)),
    Option(
        "max_worker_rss", Group.WORKERS, "BYTES", "Recycle a worker with more resident memory.", optional(parse_size)
    ),
    Option(
        "leave_daemons",
        Group.WORKERS,
        "",
        "Keep processes that left the process group of their worker (setsid) alive at a stop.",
        parse_flag,
    ),
    Option("user", Group.PRIVILEGES, "NAME", "Run workers as this user, by name or number.", shown_default=""),
    Option(
        "group",
        Group.PRIVILEGES,
        "NAME",
        "Run workers in this group; without it, in the group of --user.",
        shown_default="",
    ),
    Option("umask", Group.PRIVILEGES, "OCTAL", "The umask of workers, such as 027.", parse_octal, shown_default=""),
    Option(
        "insecure_paths",
        Group.PRIVILEGES,
        "",
        "With --user: accept settings, certificates and code that a user other than root can change.",
        parse_flag,
    ),
    Option("log_format", Group.OBSERVING, "NAME", "Format of the log on standard error: text or json."),
    Option("log_level", Group.OBSERVING, "NAME", "Minimum level of the log: debug, info, warning or error."),
    Option(
        "access_log",
        Group.OBSERVING,
        "[FILE]",
        "Write a line for each connection that has ended to this file, which USR1 reopens; - or no value: to standard "
        "output.",
        shown_default="",
        bare_value="-",
    ),
    Option(
        "control",
        Group.OBSERVING,
        "PATH",
        "Control socket, or off; without it, one in a directory that only you can use.",
        shown_default="",
    ),
    Option(
        "metrics",
        Group.OBSERVING,
        "ADDR",
        "Serve /metrics, /healthz, /readyz and a status page on HOST:PORT, :PORT (127.0.0.1 only) or unix:PATH, by a "
        "process of its own.",
        optional(local_address),
    ),
    Option(
        "agent",
        Group.OBSERVING,
        "ADDR",
        "Answer agent checks of HAProxy on HOST:PORT, :PORT (127.0.0.1 only) or unix:PATH, by the process of "
        "--metrics: ready with a weight by load, or drain.",
        optional(local_address),
    ),
    Option(
        "pidfile",
        Group.OBSERVING,
        "PATH",
        "Write the PID of the supervisor to this file and lock it.",
        shown_default="",
    ),
    Option(
        "ready_fd",
        Group.OBSERVING,
        "N",
        "Write READY and a newline to this descriptor once every worker accepts.",
        parse_int,
        shown_default="",
    ),
    Option(
        "reload",
        Group.DEVELOPMENT,
        "",
        "For development: reload when a Python file below the current directory changes.",
        parse_flag,
    ),
    Option(
        "traceback",
        Group.DEVELOPMENT,
        "",
        "Show the traceback of a service that cannot be imported or started.",
        parse_flag,
    ),
)


# --- for click --------------------------------------------------------------------------------------------------------


def parameters(command: str) -> list[click.Parameter]:
    """Return the options of `serve`, `check` or `run`."""
    config = click.Option(
        ["--config", "-c"],
        metavar="FILE",
        help="TOML file of these options, with _ for -.  [default: prefork.toml, if it exists]",
        shell_complete=completer("", "FILE"),
    )
    chdir = click.Option(
        ["--chdir"],
        metavar="DIR",
        help="Go to this directory first, as if started there.",
        shell_complete=completer("", "DIR"),
    )
    return [*(each.parameter(command) for each in OPTIONS if each.of_command(command)), config, chdir]


def given_in(context: click.Context) -> Given:
    """Return what the command line gave, as text."""
    return {
        name: _texts(value)
        for name, value in context.params.items()
        if name != "target" and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _texts(value: object) -> Sequence[str]:
    if isinstance(value, tuple):
        return [str(each) for each in value]
    return [str(value).lower() if isinstance(value, bool) else str(value)]
