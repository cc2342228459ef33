"""The tools that people try a TCP server with: nc and socat, over IPv4, IPv6 and unix sockets."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.support import need

from prefork.testing import Server, run_server

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with run_server("echo:handle", "-w", "2", bind=[":0", f"unix:{tmp_path}/socket"], cwd=EXAMPLES) as running:
        yield running


def run(command: list[str], text: bytes) -> bytes:
    return subprocess.run(command, input=text, capture_output=True, timeout=20, check=True).stdout


def test_all_interfaces_are_one_port_on_both_families(server: Server) -> None:
    v4, v6, unix = server.addresses
    assert v4 == f"0.0.0.0:{server.port}"
    assert v6 == f"[::]:{server.port}"
    assert unix.startswith("unix:/")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_nc_talks_to_the_echo_example(server: Server, host: str) -> None:
    need("nc")
    text = b"".join(b"line %d\n" % i for i in range(5000))
    assert run(["nc", "-N", host, str(server.port)], text) == text


def test_nc_talks_over_a_unix_socket(server: Server) -> None:
    need("nc")
    assert run(["nc", "-N", "-U", server.addresses[2].removeprefix("unix:")], b"local\n") == b"local\n"


@pytest.mark.parametrize("kind", ["TCP4", "TCP6", "UNIX"])
def test_socat_talks_over_tcp_and_unix_sockets(server: Server, kind: str) -> None:
    need("socat")
    where = {"TCP4": f"127.0.0.1:{server.port}", "TCP6": f"[::1]:{server.port}"}.get(kind)
    address = f"{kind}:{where}" if where else f"UNIX-CONNECT:{server.addresses[2].removeprefix('unix:')}"
    text = os.urandom(100_000).replace(b"\n", b"") + b"\n"
    lines = b"".join(text[at : at + 1000] + b"\n" for at in range(0, len(text), 1000))
    assert run(["socat", "-t10", "-", address], lines) == lines
