"""The options of `serve` and `check`: names, help, and how their values become `Settings`.

What a value may be is decided in `config.py`; here it is only read.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ..config import TLS, Limits, Settings, parse_address
from ..errors import ConfigError

_DEFAULT = Settings()
_LIMITS = Limits()

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="The service: module:attribute or path/to/file.py:attribute. A coroutine function of (stream) or of "
        "(reader, writer), an asyncio.Protocol class, or an object with start, handle and stop.",
        show_default=False,
    ),
]
Bind = Annotated[
    list[str],
    typer.Option(
        "--bind",
        "-b",
        metavar="ADDR",
        help="HOST:PORT, [V6]:PORT, :PORT (all interfaces, both families) or unix:PATH[,mode=660]. Repeatable.",
    ),
]
Workers = Annotated[int, typer.Option("--workers", "-w", metavar="N", help="Processes; 0: one per usable CPU.")]
Backlog = Annotated[int, typer.Option(metavar="N", help="Connections that may wait in the kernel's queue.")]
TLSCert = Annotated[
    list[str] | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain (PEM).", show_default=False)
]
TLSKey = Annotated[
    list[str] | None, typer.Option("--tls-key", metavar="FILE", help="Its private key (PEM).", show_default=False)
]
HandshakeTimeout = Annotated[float, typer.Option(metavar="S", help="Seconds for a whole TLS handshake.")]
WriteTimeout = Annotated[float, typer.Option(metavar="S", help="Seconds that a peer may take nothing of what waits.")]
DrainTimeout = Annotated[float, typer.Option(metavar="S", help="Seconds that open connections may take to end.")]
ReadyFd = Annotated[
    int | None,
    typer.Option(metavar="N", help="Write READY and a newline there once every worker accepts.", show_default=False),
]
Loop = Annotated[str, typer.Option(metavar="asyncio|uvloop", help="The event loop of the workers.")]
LogFormat = Annotated[str, typer.Option(metavar="text|json", help="Format of the log on standard error.")]
LogLevel = Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")]

DEFAULT_BIND = [str(address) for address in _DEFAULT.bind]
DEFAULT_WORKERS = _DEFAULT.workers
DEFAULT_BACKLOG = _DEFAULT.backlog
DEFAULT_DRAIN_TIMEOUT = _DEFAULT.drain_timeout
DEFAULT_HANDSHAKE_TIMEOUT = _LIMITS.handshake_timeout
DEFAULT_WRITE_TIMEOUT = _LIMITS.write_timeout
DEFAULT_LOOP = _DEFAULT.loop
DEFAULT_LOG_FORMAT = _DEFAULT.log_format
DEFAULT_LOG_LEVEL = _DEFAULT.log_level


def settings(
    *,
    bind: list[str],
    workers: int,
    backlog: int,
    tls_cert: list[str] | None,
    tls_key: list[str] | None,
    handshake_timeout: float,
    write_timeout: float,
    drain_timeout: float,
    ready_fd: int | None,
    loop: str,
    log_format: str,
    log_level: str,
) -> Settings:
    """The settings that the options say. Raises ConfigError."""
    return Settings(
        bind=tuple(parse_address(text) for text in bind),
        workers=workers,
        backlog=backlog,
        tls=_pairs(tls_cert or [], tls_key or []),
        drain_timeout=drain_timeout,
        ready_fd=ready_fd,
        loop=loop,
        log_format=log_format,
        log_level=log_level,
        limits=Limits(
            handshake_timeout=_positive("--handshake-timeout", handshake_timeout),
            write_timeout=_positive("--write-timeout", write_timeout),
        ),
    )


def _positive(option: str, seconds: float) -> float:
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{option} {seconds}: must be more than 0 seconds")
    return seconds


def _pairs(certs: list[str], keys: list[str]) -> tuple[TLS, ...]:
    if len(certs) != len(keys):
        option, missing = ("--tls-cert", "--tls-key") if len(certs) > len(keys) else ("--tls-key", "--tls-cert")
        path = (certs if len(certs) > len(keys) else keys)[min(len(certs), len(keys))]
        raise ConfigError(f"{option} {path}: its {missing} is missing")
    if len(certs) > 1:
        raise ConfigError(f"--tls-cert {certs[1]}: only one certificate can be given")
    return tuple(TLS(cert, key) for cert, key in zip(certs, keys, strict=True))
