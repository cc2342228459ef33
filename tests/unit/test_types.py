"""What a user's type checker finds: mypy on programs that serve a handler of the right and of the wrong shape."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import asyncio
import functools
from collections.abc import AsyncIterator
import prefork

class Service:
    async def start(self) -> None: ...
    async def handle(self, stream: prefork.Stream) -> None: ...
    async def stop(self) -> None: ...

class HandleOnly:
    async def handle(self, stream: prefork.Stream) -> None: ...

class Echo(asyncio.Protocol): ...

async def stream(stream: prefork.Stream, greeting: str = "hi") -> int: return 1
async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...
async def none() -> None: ...
async def three(a: int, b: int, c: int) -> None: ...
async def generator(stream: prefork.Stream) -> AsyncIterator[bytes]: yield b""
def blocking(stream: prefork.Stream) -> None: ...

"""
RIGHT = ["stream", "streams", "Echo", "lambda: Echo()", "Service()", "functools.partial(stream, greeting='hello')"]
WRONG = ["none", "three", "generator", "blocking", "HandleOnly()", "Service", "5", "None"]


@pytest.mark.deadline(180)
def test_mypy_finds_each_handler_of_the_wrong_shape_and_no_other(tmp_path: Path) -> None:
    lines = [f"prefork.TCPServer({handler})" for handler in (*RIGHT, *WRONG)]
    program = tmp_path / "program.py"
    program.write_text(HEAD + "\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(program)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if "error:" in line}
    first = HEAD.count("\n") + 1
    assert found == {first + len(RIGHT) + number for number in range(len(WRONG))}, done.stdout + done.stderr
