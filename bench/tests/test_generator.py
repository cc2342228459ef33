"""The load generator, built and run: it counts what it says, and it sees a wrong answer. No time is measured."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.support import need

from bench import roster, works
from bench.build import Programs, build
from bench.generator import Failure, Generator
from bench.servers import Server, running

CORE = max(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    need("cc")
    return build(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def generator(programs: Programs) -> Generator:
    return Generator(programs.load, None)


def small(work: works.Work) -> works.Work:
    return dataclasses.replace(work, connections=7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "contestant", [roster.PREFORK, roster.PREFORK_STREAMS, roster.FLOOR], ids=lambda each: each.name
)
def test_the_generator_counts_the_requests_it_was_given(
    contestant: roster.Contestant, generator: Generator, programs: Programs
) -> None:
    commands = {handler: contestant.command(programs.folder, handler, None) for handler in ("echo", "lines")}
    with running(commands, CORE) as servers:
        for work in (works.ECHO, works.ECHO_HUGE, works.LINES, works.CLOSE, works.RESET):
            requests = 20 if work.size > works.KIB else 300
            sample = generator.count(small(work), servers[work.handler], requests)
            assert sample.requests == requests
            assert sample.cpu_ns > 0
            assert sample.p50_ns <= sample.p99_ns <= sample.p999_ns
            assert sample.handshakes == 0
        with generator.holding(servers["echo"], 40, ""):
            assert len(os.listdir(f"/proc/{servers['echo'].pid}/fd")) > 40


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_handshakes_are_full_or_resumed(
    version: str, generator: Generator, programs: Programs, certs: dict[str, str]
) -> None:
    if not programs.tls:
        pytest.skip("the generator was built without OpenSSL: libssl-dev is not installed")
    command = roster.PREFORK.command(programs.folder, "echo", (certs["cert"], certs["key"]))
    with running({"prefork": command}, CORE) as servers:
        full = generator.count(dataclasses.replace(small(works.TLS_FULL), tls=version), servers["prefork"], 30)
        assert (full.handshakes, full.resumed) == (30, 0)
        # Those that were the first on their slot had no session to resume.
        resumed = generator.count(dataclasses.replace(small(works.TLS_RESUMED), tls=version), servers["prefork"], 60)
        assert resumed.handshakes == 60
        assert 60 - 7 <= resumed.resumed <= 60
        echoed = generator.count(dataclasses.replace(small(works.TLS_BULK), tls=version), servers["prefork"], 50)
        assert echoed.requests == 50


class Ending(asyncio.Protocol):
    """Echoes, and remembers what ended each connection."""

    def __init__(self, reasons: list[Exception | None]) -> None:
        self.reasons = reasons

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.reasons.append(exc)


@pytest.mark.parametrize(("work", "kind"), [(works.CLOSE, type(None)), (works.RESET, ConnectionResetError)])
def test_the_generator_ends_connections_as_the_work_says(work: works.Work, kind: type, generator: Generator) -> None:
    async def main() -> list[Exception | None]:
        reasons: list[Exception | None] = []
        loop = asyncio.get_running_loop()
        async with await loop.create_server(lambda: Ending(reasons), "127.0.0.1", 0) as listening:
            server = Server(os.getpid(), listening.sockets[0].getsockname()[1], Path(os.devnull))
            async with asyncio.timeout(20):
                await asyncio.to_thread(generator.count, small(work), server, 20)
                while len(reasons) < 20:
                    await asyncio.sleep(0.01)
        return reasons

    assert {type(each) for each in asyncio.run(main())} == {kind}


@contextlib.contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[Server]:
    """A server that gives one answer to one message and goes away."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(10)
                    connection.sendall(answer(connection.recv(65536)))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Server(os.getpid(), listener.getsockname()[1], Path(os.devnull))
        finally:
            thread.join()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda message: message[:-1] + b"!", "wrong bytes"),
        (lambda message: b"00000000" + message[8:], "wrong bytes"),
        (lambda message: message + b"x", "wrong bytes"),
        (lambda message: message[:-1], "was closed after 63 of 64 bytes"),
    ],
    ids=["one byte wrong", "another's answer", "too much", "too little"],
)
def test_the_generator_reports_a_wrong_answer(
    answer: Callable[[bytes], bytes], said: str, generator: Generator
) -> None:
    work = dataclasses.replace(works.ECHO, size=64, connections=1)
    with answering(answer) as server, pytest.raises(Failure, match=said):
        generator.count(work, server, 1)


OK = b"HTTP/1.1 200 OK\r\nServer: none\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (OK + b"hello", ""),
        (OK.lower().replace(b"http", b"HTTP", 1) + b"hello", ""),
        (OK + b"hello!", "wrong answer"),
        (OK + b"hell", "was closed after"),
        (OK.replace(b"Length", b"Size") + b"hello", "wrong answer"),
        (OK.replace(b"200", b"503") + b"hello", "wrong answer: HTTP/1.1 503"),
        (OK.replace(b"none", b"x" * 5000) + b"hello", "wrong answer"),
        (b"HTT", "was closed after 3 bytes"),
    ],
    ids=["right", "lower case", "too much", "too little", "no length", "status", "too long", "begun"],
)
def test_the_generator_asks_by_http(answer: bytes, said: str, generator: Generator) -> None:
    asked = []

    def give(message: bytes) -> bytes:
        asked.append(message)
        return answer

    work = dataclasses.replace(works.CLOSE, connections=1, http=True)
    with answering(give) as server, pytest.raises(Failure, match=said) if said else contextlib.nullcontext():
        assert generator.count(work, server, 1).requests == 1
    assert asked == [b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"]


def test_the_generator_rejects_unknown_options(programs: Programs) -> None:
    for options, said in (
        (["--port", "0"], r"--port 0: must be a whole number from 1 to 65535"),
        (["--port", "9", "--size", "many"], r"--size many: must be a whole number"),
        (["--port", "9", "--work", "play"], r"--work play: not known"),
        (["--port", "9", "--work", "reset", "--tls", "1.3"], r"--work reset: not with --tls"),
        (["--port", "9", "--http", "--tls", "1.3"], r"--http: not with --tls"),
        (["--port", "9", "more"], r"more: not expected"),
        ([], r"--port is missing"),
    ):
        done = subprocess.run([programs.load, *options], capture_output=True, text=True, timeout=10)
        assert done.returncode == 1
        assert re.fullmatch(f"load: {said}.*\n", done.stderr)


def test_the_generator_rejects_the_pid_of_no_process(generator: Generator, programs: Programs) -> None:
    with running({"c": roster.FLOOR.command(programs.folder, "echo", None)}, CORE) as servers:
        gone = subprocess.Popen(["true"])
        gone.wait()
        server = dataclasses.replace(servers["c"], pid=gone.pid)
        with pytest.raises(Failure, match=f"there is no process {gone.pid}"):
            generator.count(small(works.ECHO), server, 10)
