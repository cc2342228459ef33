"""The options of `serve` and `check`: one table with their names, their help, and how text becomes a value.

What a value may be is decided in `config.py`; here it is only read. Where the text comes from is in `sources.py`. typer
sees every option as text, as its own messages would name neither the cause nor the cure.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..addresses import parse_address
from ..checks import format_value
from ..config import Limits, Settings
from ..errors import ConfigError

TARGET_FORMS = "module:attribute or path/to/file.py:attribute, such as echo:handle"

_TARGET_HELP = (
    "The service, module:attribute or path/to/file.py:attribute: async def handle(stream), async def handle(reader, "
    "writer) as asyncio.start_server takes it, an asyncio.Protocol class or factory, or an object with async start, "
    "handle and stop."
)
_CONFIG_HELP = "A TOML file of these options, with _ for -.  [default: prefork.toml, if it is there]"


# --- from text to values ----------------------------------------------------------------------------------------------


def text(option: str, value: str) -> str:
    """The text itself."""
    return value


def whole(option: str, value: str) -> int:
    """The number that `value` says. Raises ConfigError."""
    # int() would take underscores, spaces and the digits of other scripts, and refuse more than 4300 digits.
    if not re.fullmatch(r"[+-]?[0-9]+", value):
        raise ConfigError(f"{option} {format_value(value)}: must be a whole number")
    if len(value) > 18:
        raise ConfigError(f"{option} {format_value(value)}: the number is too large")
    return int(value)


def octal(option: str, value: str) -> int:
    """Permission bits. Raises ConfigError."""
    if not re.fullmatch(r"0?[0-7]{1,3}", value):
        raise ConfigError(f"{option} {format_value(value)}: must be up to three octal digits, such as 027")
    return int(value, 8)


def seconds(option: str, value: str) -> float:
    """A number of seconds. Raises ConfigError."""
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)", value):
        raise ConfigError(f"{option} {format_value(value)}: must be a number of seconds, such as 30 or 2.5")
    return float(value)


def size(option: str, value: str) -> int:
    """Bytes, or with K, M or G so many times 1024 of them. Raises ConfigError."""
    found = re.fullmatch(r"([0-9]{1,15})([KMG]?)", value)
    if found is None:
        raise ConfigError(f"{option} {format_value(value)}: must be a number of bytes, such as 536870912 or 512M")
    return int(found[1]) << 10 * " KMG".index(found[2] or " ")


def number(option: str, value: str) -> float:
    """A number, whole or not. Raises ConfigError."""
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)", value):
        raise ConfigError(f"{option} {format_value(value)}: must be a number, such as 100 or 0.5")
    return float(value)


def words(option: str, value: str) -> bytes:
    """Text to be sent, with \\r, \\n, \\t, \\\\ and \\xNN for what cannot be typed."""
    simple = {"r": "\r", "n": "\n", "t": "\t", "\\": "\\"}

    def plain(found: re.Match[str]) -> str:
        return simple.get(found[1]) or chr(int(found[1][1:], 16))

    return re.sub(r"\\([rnt\\]|x[0-9a-fA-F]{2})", plain, value).encode("utf-8", "surrogateescape")


def flag(option: str, value: str) -> bool:
    """True or false. Raises ConfigError."""
    known = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if value.lower() not in known:
        raise ConfigError(f"{option} {format_value(value)}: must be true or false")
    return known[value.lower()]


def unless_off(read: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
    """`read`, or None for the word off."""
    return lambda option, value: None if value == "off" else read(option, value)


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """One option. Its value goes to the field of its name in `Settings`, or in `Limits`."""

    name: str
    metavar: str
    help: str
    read: Callable[[str, str], Any] = text
    many: bool = False
    """May be given more than once; the value is a list."""
    short: str = ""
    shown_default: str | None = None
    """What the help says instead of the default; "" says nothing."""

    @property
    def field(self) -> str:
        """The name in Python and in files."""
        return self.name.replace("-", "_")

    @property
    def of_limits(self) -> bool:
        """Whether it bounds one connection."""
        return self.field in Limits.__slots__

    def default_text(self) -> str:
        """The default as a user would write it."""
        if self.shown_default is not None:
            return self.shown_default
        value = getattr(Limits() if self.of_limits else Settings(), self.field)
        if value is None:
            return "off"
        if self.read is size:
            return f"{value >> 20}M"
        return f"{value:g}" if isinstance(value, float) else str(value)


OPTIONS = (
    Option(
        "bind",
        "ADDR",
        "HOST:PORT, [V6]:PORT, :PORT (all interfaces, both families), unix:PATH[,mode=660], fd:N (passed on by the "
        "parent) or systemd[:NAME]. Repeatable.",
        lambda option, value: parse_address(value),
        many=True,
        short="-b",
        shown_default=" ".join(map(str, Settings().bind)),
    ),
    Option("workers", "N", "Processes; 0: one per usable CPU.", whole, short="-w"),
    Option("backlog", "N", "Connections that may wait in the kernel to be accepted.", whole),
    Option("reuse-port", "", "A listening socket for each worker (SO_REUSEPORT), held by the supervisor, too.", flag),
    Option("tls-cert", "FILE", "Certificate chain in PEM; turns TLS on.", many=True, shown_default=""),
    Option("tls-key", "FILE", "Its private key in PEM, not encrypted.", many=True, shown_default=""),
    Option(
        "max-connections",
        "N",
        "Open at once, over all workers.",
        unless_off(whole),
        shown_default="what the descriptor limit allows",
    ),
    Option("max-connections-per-ip", "N", "Open at once of one address (IPv6: of one /64).", unless_off(whole)),
    Option("accept-rate", "R", "Connections accepted in a second, over all workers.", unless_off(number)),
    Option("at-limit", "NAME", "At --max-connections: wait in the kernel's queue, or refuse."),
    Option("refusal", "TEXT", r"What a refused connection is sent, such as '421 busy\r\n'.", words, shown_default=""),
    Option("max-handshakes", "N", "TLS handshakes that may wait for their turn, in a worker.", whole),
    Option("max-unsent", "BYTES", "Unsent bytes of all connections of a worker.", size),
    Option("handshake-timeout", "SECONDS", "For a whole TLS handshake.", seconds),
    Option("first-byte-timeout", "SECONDS", "Until the peer's first byte.", unless_off(seconds)),
    Option("idle-timeout", "SECONDS", "How long a handler may wait for its peer's next byte.", unless_off(seconds)),
    Option("write-timeout", "SECONDS", "How long a peer may take none of what waits for it.", seconds),
    Option("max-age", "SECONDS", "Of a connection.", unless_off(seconds)),
    Option("drain-timeout", "SECONDS", "How long open connections may take to end at a stop.", seconds),
    Option("hang-timeout", "SECONDS", "A worker whose loop does not turn so long is replaced.", seconds),
    Option("boot-timeout", "SECONDS", "How long a worker may take until it accepts.", seconds),
    Option("max-connections-served", "N", "Replace a worker after so many connections.", unless_off(whole)),
    Option("max-worker-age", "SECONDS", "Replace a worker after so long.", unless_off(seconds)),
    Option("max-worker-rss", "BYTES", "Replace a worker that has so much memory resident.", unless_off(size)),
    Option("user", "NAME", "Whom the workers become, by name or number.", shown_default=""),
    Option("group", "NAME", "Their group; by default the user's.", shown_default=""),
    Option(
        "insecure-paths",
        "",
        "With --user: serve although others than root can change the configuration, certificates or code.",
        flag,
    ),
    Option("umask", "OCTAL", "The workers' umask, such as 027.", octal, shown_default=""),
    Option("leave-daemons", "", "At the end, let processes live that have left their worker's group (setsid).", flag),
    Option("pidfile", "PATH", "Where to write the supervisor's number; no second one may have it.", shown_default=""),
    Option(
        "control",
        "PATH",
        "The control socket, or off. By default one in a folder that is yours alone.",
        shown_default="",
    ),
    Option(
        "ready-fd",
        "N",
        "Write READY and a newline to this descriptor once every worker accepts.",
        whole,
        shown_default="",
    ),
    Option("loop", "NAME", "The workers' event loop: asyncio or uvloop."),
    Option("log-format", "NAME", "text or json, on standard error."),
    Option("log-level", "NAME", "debug, info, warning or error."),
)


# --- as typer sees them -----------------------------------------------------------------------------------------------

#: What was given on the command line, by field; what was not given is missing.
Given = Mapping[str, Sequence[str]]


def word(act: Callable[[str, Given], Any]) -> Callable[..., Any]:
    """A function for typer, whose parameters are TARGET, --config and the table, and which calls `act`."""

    def called(target: str, **values: Any) -> Any:
        module, colon, attribute = target.rpartition(":")
        if not (module and colon and attribute):
            raise ConfigError(f"TARGET {format_value(target)}: expected {TARGET_FORMS}")
        return act(target, {field: _texts(value) for field, value in values.items() if value is not None})

    target = Annotated[str, typer.Argument(metavar="TARGET", show_default=False, help=_TARGET_HELP)]
    config = Annotated[str | None, typer.Option("--config", metavar="FILE", show_default=False, help=_CONFIG_HELP)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("target", kind, annotation=target)]
    parameters += [inspect.Parameter(each.field, kind, default=None, annotation=_annotation(each)) for each in OPTIONS]
    parameters += [inspect.Parameter("config", kind, default=None, annotation=config)]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions take attributes
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, bool):
        return [str(value).lower()]
    return value if isinstance(value, list) else [value]


def _annotation(option: Option) -> Any:
    default = option.default_text()
    help = option.help + (f"  [default: {default}]" if default and option.read is not flag else "")
    if option.read is flag:
        names = [f"--{option.name}/--no-{option.name}"]
        return Annotated[bool | None, typer.Option(*names, show_default=False, help=help)]
    names = [f"--{option.name}", *([option.short] if option.short else [])]
    given = typer.Option(*names, metavar=option.metavar, show_default=False, help=help)
    return Annotated[list[str] | None, given] if option.many else Annotated[str | None, given]
