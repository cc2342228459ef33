"""The contestants of the benchmark: their names, and how each is started.

A table. The servers themselves are in `contestants/`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from .works import Work


@dataclass(frozen=True, slots=True)
class Contestant:
    """One server: a module of `bench.contestants`, or for the floor a program."""

    name: str
    label: str
    module: str
    arguments: tuple[str, ...] = ()
    ours: bool = False
    tls: bool = True
    quick: bool = True
    """Whether a quick run has it."""
    only: tuple[str, ...] = ()
    """The only works that it does; empty: all."""
    needs: str = ""
    """A module that not every Python has: without it the contestant is left out, and its works are tried first."""
    refused: frozenset[str] = frozenset()
    """Works that it has been tried at, and failed."""
    environment: tuple[str, ...] = ()
    """NAME=VALUE of each variable that it gets."""

    def does(self, work: Work) -> bool:
        """Whether it takes part in `work`."""
        if work.name in self.refused or (work.tls and not self.tls):
            return False
        return not self.only or work.name in self.only

    def command(self, build: Path, handler: str, tls: tuple[str, str] | None) -> list[str]:
        """How it is started; `tls` are the paths of certificate and key."""
        if self.module == "epoll":
            return [str(build / "epoll")]
        prefix = ["env", *self.environment] if self.environment else []
        command = [
            *prefix,
            sys.executable,
            "-m",
            f"bench.contestants.{self.module}",
            *self.arguments,
            "--work",
            handler,
        ]
        return command + (["--tls", *tls] if tls else [])


_UVLOOP = ("--loop", "uvloop")

PREFORK = Contestant("prefork", "prefork", "prefork_stream", ours=True)
PREFORK_PURE = Contestant(
    "prefork-pure", "prefork in pure Python", "prefork_stream", ours=True, quick=False, environment=("PREFORK_PURE=1",)
)
PREFORK_UVLOOP = Contestant("prefork-uvloop", "prefork on uvloop", "prefork_stream", _UVLOOP, ours=True)
PREFORK_STREAMS = Contestant("prefork-streams", "prefork, unchanged (reader, writer)", "prefork_streams", ours=True)
ASYNCIO_STREAMS = Contestant("asyncio-streams", "asyncio streams", "asyncio_streams")
ASYNCIO_PROTOCOL = Contestant("asyncio-protocol", "asyncio protocol", "asyncio_protocol")
UVLOOP_STREAMS = Contestant("uvloop-streams", "uvloop streams", "asyncio_streams", _UVLOOP)
UVLOOP_PROTOCOL = Contestant("uvloop-protocol", "uvloop protocol", "asyncio_protocol", _UVLOOP)
UVLOOP_JOINED = Contestant(
    "uvloop-joined",
    "uvloop protocol, joined by hand",
    "asyncio_protocol",
    (*_UVLOOP, "--joined"),
    only=("lines",),
)
#: Loops that are younger than uvloop, each with asyncio's streams and with a protocol.
LOOPS = tuple(
    Contestant(f"{loop}-{kind}", f"{loop} {kind}", f"asyncio_{kind}", ("--loop", loop), quick=False, needs=loop)
    for loop in ("blazio", "rloop", "talyn")
    for kind in ("streams", "protocol")
)
TORNADO = Contestant("tornado", "Tornado", "tornado_tcp")
GEVENT = Contestant("gevent", "gevent", "gevent_streams", quick=False)
TRIO = Contestant("trio", "trio", "trio_streams", quick=False)
TWISTED = Contestant("twisted", "Twisted", "twisted_protocol", quick=False)
FLOOR = Contestant("c", "C, epoll (the floor)", "epoll", tls=False)

ALL = (
    PREFORK,
    PREFORK_PURE,
    PREFORK_UVLOOP,
    PREFORK_STREAMS,
    ASYNCIO_STREAMS,
    ASYNCIO_PROTOCOL,
    UVLOOP_STREAMS,
    UVLOOP_PROTOCOL,
    UVLOOP_JOINED,
    *LOOPS,
    TORNADO,
    GEVENT,
    TRIO,
    TWISTED,
    FLOOR,
)
