"""The options of `serve` and `check`: their names, their help, and how the text of their values becomes `Settings`.

What a value may be is decided in `config.py`; here it is only read. typer hands every value over as text, as its own
messages would name neither the cause nor the cure.
"""

from __future__ import annotations

import re
from typing import Annotated

import typer

from ..config import TLS, Limits, Settings, parse_address, shown
from ..errors import ConfigError

_DEFAULTS = Settings()
_LIMITS = Limits()

TARGET_FORMS = "module:attribute or path/to/file.py:attribute, such as echo:handle"

_Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        show_default=False,
        help="The service, module:attribute or path/to/file.py:attribute: async def handle(stream), "
        "async def handle(reader, writer) as asyncio.start_server takes it, an asyncio.Protocol class or factory, "
        "or an object with async start, handle and stop.",
    ),
]
_Bind = Annotated[
    list[str] | None,
    typer.Option(
        "--bind",
        "-b",
        metavar="ADDR",
        show_default=False,
        help="HOST:PORT, [V6]:PORT, :PORT (all interfaces, both families) or unix:PATH[,mode=660]. Repeatable.  "
        f"[default: {' '.join(str(address) for address in _DEFAULTS.bind)}]",
    ),
]
_Workers = Annotated[str, typer.Option("--workers", "-w", metavar="N", help="Processes; 0: one per usable CPU.")]
_Backlog = Annotated[
    str, typer.Option("--backlog", metavar="N", help="Connections that may wait in the kernel to be accepted.")
]
_TLSCert = Annotated[
    list[str] | None,
    typer.Option("--tls-cert", metavar="FILE", show_default=False, help="Certificate chain in PEM; turns TLS on."),
]
_TLSKey = Annotated[
    list[str] | None,
    typer.Option("--tls-key", metavar="FILE", show_default=False, help="Its private key in PEM, not encrypted."),
]
_HandshakeTimeout = Annotated[
    str, typer.Option("--handshake-timeout", metavar="SECONDS", help="For a whole TLS handshake.")
]
_WriteTimeout = Annotated[
    str, typer.Option("--write-timeout", metavar="SECONDS", help="How long a peer may take none of what waits for it.")
]
_DrainTimeout = Annotated[
    str, typer.Option("--drain-timeout", metavar="SECONDS", help="How long open connections may take to end at a stop.")
]
_HangTimeout = Annotated[
    str,
    typer.Option("--hang-timeout", metavar="SECONDS", help="A worker whose loop does not turn so long is replaced."),
]
_BootTimeout = Annotated[
    str, typer.Option("--boot-timeout", metavar="SECONDS", help="How long a worker may take until it accepts.")
]
_User = Annotated[
    str, typer.Option("--user", metavar="NAME", show_default=False, help="Whom the workers become, by name or number.")
]
_Group = Annotated[
    str, typer.Option("--group", metavar="NAME", show_default=False, help="Their group; by default the user's.")
]
_Umask = Annotated[
    str | None, typer.Option("--umask", metavar="OCTAL", show_default=False, help="The workers' umask, such as 027.")
]
_Control = Annotated[
    str,
    typer.Option(
        "--control",
        metavar="PATH",
        show_default=False,
        help="The control socket, or off. By default one in a folder that is yours alone.",
    ),
]
_ReadyFd = Annotated[
    str | None,
    typer.Option(
        "--ready-fd",
        metavar="N",
        show_default=False,
        help="Write READY and a newline to this descriptor once every worker accepts.",
    ),
]
_Loop = Annotated[str, typer.Option("--loop", metavar="NAME", help="The workers' event loop: asyncio or uvloop.")]
_LogFormat = Annotated[str, typer.Option("--log-format", metavar="NAME", help="text or json, on standard error.")]
_LogLevel = Annotated[str, typer.Option("--log-level", metavar="NAME", help="debug, info, warning or error.")]


def read(
    target: _Target,
    bind: _Bind = None,
    workers: _Workers = str(_DEFAULTS.workers),
    backlog: _Backlog = str(_DEFAULTS.backlog),
    tls_cert: _TLSCert = None,
    tls_key: _TLSKey = None,
    handshake_timeout: _HandshakeTimeout = f"{_LIMITS.handshake_timeout:g}",
    write_timeout: _WriteTimeout = f"{_LIMITS.write_timeout:g}",
    drain_timeout: _DrainTimeout = f"{_DEFAULTS.drain_timeout:g}",
    hang_timeout: _HangTimeout = f"{_DEFAULTS.hang_timeout:g}",
    boot_timeout: _BootTimeout = f"{_DEFAULTS.boot_timeout:g}",
    user: _User = _DEFAULTS.user,
    group: _Group = _DEFAULTS.group,
    umask: _Umask = None,
    control: _Control = _DEFAULTS.control,
    ready_fd: _ReadyFd = None,
    loop: _Loop = _DEFAULTS.loop,
    log_format: _LogFormat = _DEFAULTS.log_format,
    log_level: _LogLevel = _DEFAULTS.log_level,
) -> tuple[str, Settings]:
    """TARGET and the settings that the options say. Raises ConfigError."""
    module, colon, attribute = target.rpartition(":")
    if not (module and colon and attribute):
        raise ConfigError(f"TARGET {shown(target)}: expected {TARGET_FORMS}")
    settings = Settings(
        bind=tuple(parse_address(text) for text in bind) if bind else _DEFAULTS.bind,
        workers=whole("--workers", workers),
        backlog=whole("--backlog", backlog),
        tls=_pairs(tls_cert or [], tls_key or []),
        drain_timeout=_seconds("--drain-timeout", drain_timeout),
        hang_timeout=_seconds("--hang-timeout", hang_timeout),
        boot_timeout=_seconds("--boot-timeout", boot_timeout),
        user=user,
        group=group,
        umask=None if umask is None else _octal("--umask", umask),
        control=control,
        ready_fd=None if ready_fd is None else whole("--ready-fd", ready_fd),
        loop=loop,
        log_format=log_format,
        log_level=log_level,
        limits=Limits(
            handshake_timeout=_seconds("--handshake-timeout", handshake_timeout),
            write_timeout=_seconds("--write-timeout", write_timeout),
        ),
    )
    return target, settings


def whole(option: str, text: str) -> int:
    """The number that `text` says. Raises ConfigError."""
    # int() would take underscores, spaces and the digits of other scripts, and refuse more than 4300 digits.
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ConfigError(f"{option} {shown(text)}: must be a whole number")
    if len(text) > 18:
        raise ConfigError(f"{option} {shown(text)}: the number is too large")
    return int(text)


def _octal(option: str, text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{1,3}", text):
        raise ConfigError(f"{option} {shown(text)}: must be up to three octal digits, such as 027")
    return int(text, 8)


def _seconds(option: str, text: str) -> float:
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)", text):
        raise ConfigError(f"{option} {shown(text)}: must be a number of seconds, such as 30 or 2.5")
    return float(text)


def _pairs(certs: list[str], keys: list[str]) -> tuple[TLS, ...]:
    both = min(len(certs), len(keys))
    if len(certs) > both:
        raise ConfigError(f"--tls-cert {shown(certs[both])}: its --tls-key is missing (it may be the same file)")
    if len(keys) > both:
        raise ConfigError(f"--tls-key {shown(keys[both])}: its --tls-cert is missing")
    return tuple(TLS(cert, key) for cert, key in zip(certs, keys, strict=True))
