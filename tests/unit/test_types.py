"""What a user's type checker finds: mypy on programs that serve a handler of the right and of the wrong shape, and
that give an option a right or a wrong value."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import asyncio
import functools
from collections.abc import AsyncIterator
from pathlib import Path
import prefork

class Echo(asyncio.Protocol): ...

class Service:
    async def start(self) -> None: ...
    async def handle(self, stream: prefork.Stream) -> None: ...
    async def stop(self) -> None: ...

class Protocols:
    async def start(self) -> None: ...
    def protocol(self) -> Echo: return Echo()
    async def stop(self) -> None: ...

class StartOnly:
    async def start(self) -> None: ...
    async def stop(self) -> None: ...

class HandleOnly:
    async def handle(self, stream: prefork.Stream) -> None: ...

async def stream(stream: prefork.Stream, greeting: str = "hi") -> int: return 1
async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...
async def none() -> None: ...
async def three(a: int, b: int, c: int) -> None: ...
async def generator(stream: prefork.Stream) -> AsyncIterator[bytes]: yield b""
async def make() -> Protocols: return Protocols()
async def make_wrong() -> StartOnly: return StartOnly()
def blocking(stream: prefork.Stream) -> None: ...

"""
RIGHT = [
    *("stream", "streams", "Echo", "lambda: Echo()", "Service()", "functools.partial(stream, greeting='hello')"),
    *("Protocols()", "make"),
]
WRONG = [
    *("none", "three", "generator", "blocking", "HandleOnly()", "Service", "5", "None"),
    *("StartOnly()", "Protocols", "make_wrong"),
]
#: Programs without an error, and with one each.
RIGHT_LINES = [
    *(f"prefork.{name}({handler})" for name in ("TCPServer", "serve") for handler in RIGHT),
    "prefork.serve('echo:handle', loop='uvloop', log_format='json', log_level='debug', pidfile=Path('pid'))",
    "prefork.Limits(at_limit='refuse')",
    "def worker() -> prefork.WorkerInfo | None: return prefork.current_worker()",
    "def of(stream: prefork.Stream) -> tuple[prefork.TLSInfo | None, prefork.Timeouts]: "
    "return stream.tls, stream.timeouts",
]
WRONG_LINES = [
    *(f"prefork.{name}({handler})" for name in ("TCPServer", "serve") for handler in WRONG),
    *(f"prefork.serve('echo:handle', {name}='x')" for name in ("loop", "log_format", "log_level")),
    "prefork.Limits(at_limit='x')",
]


@pytest.mark.slow
@pytest.mark.deadline(180)
def test_mypy_finds_each_wrong_handler_and_option_and_no_other(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(HEAD + "\n".join([*RIGHT_LINES, *WRONG_LINES]) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(program)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if "error:" in line}
    first = HEAD.count("\n") + 1
    assert found == {first + len(RIGHT_LINES) + number for number in range(len(WRONG_LINES))}, done.stdout + done.stderr
