"""A whole server behind a proxy: its workers, limits, commands and logs; and programs that know nothing of headers."""

from __future__ import annotations

import contextlib
import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.servers import command, serving, status
from helpers.support import wait_until

from prefork.testing import Server, run_program

SERVICE = """
async def handle(stream):
    await stream.send(f"{stream.peer} {stream.get_extra_info('proxy_peer')[0]}\\n".encode())
    while data := await stream.read(1000):
        await stream.send(data)
"""
LOOP_PROGRAM = """
import asyncio, sys

async def handle(reader, writer):
    sock = writer.get_extra_info("socket")
    writer.write(f"{writer.get_extra_info('peername')} {sock.getpeername()} ".encode() + await reader.readline())
    writer.close()

async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    await server.serve_forever()

if "uvloop" in sys.argv:
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""
#: It blocks in accept, or waits until there is something to accept.
OWN_PROGRAM = """
import select, socket, sys

with socket.create_server(("127.0.0.1", 0)) as listener:
    if "select" in sys.argv:
        select.select([listener], [], [])
    connection, _ = listener.accept()
    connection.sendall(connection.recv(100))
"""
BEHIND = ("--proxy-protocol", "any", "--proxy-from", "127.0.0.0/8")


def v1(client: str) -> bytes:
    return f"PROXY TCP4 {client} 192.0.2.1 5000 443\r\n".encode()


def through(stack: contextlib.ExitStack, server: Server, client: str) -> tuple[socket.socket, str]:
    """Connect as a proxy does for `client`; return what the service says of the connection, "" if it was closed."""
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
    sock.sendall(v1(client))
    try:
        return sock, sock.recv(1000).decode()
    except ConnectionError:
        return sock, ""


def closed(folder: Path, reason: str) -> int:
    found: int = status(folder)["totals"]["closed"][reason]
    return found


def connections(folder: Path) -> list[dict[str, Any]]:
    done = command(folder, "connections", "--json")
    found: list[dict[str, Any]] = json.loads(done.stdout)["connections"]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def test_a_server_behind_a_proxy(folder: Path) -> None:
    """Connections are spread, limited, shown and kicked by the client's address; the proxy itself has no limit."""
    log = folder / "access.log"
    options = (*BEHIND, "--max-connections-per-ip", "2", "--access-log", str(log), "--proxy-timeout", "5m")
    with contextlib.ExitStack() as stack, serving(folder, *options) as server:
        clients = {}
        for number in range(6):
            client = f"203.0.113.{number // 2}"
            sock, told = through(stack, server, client)
            assert told == f"{client}:5000 127.0.0.1\n"
            clients[sock.getsockname()] = sock
        # Whichever worker they come to: over the limit, with its address in the log; and another client goes on.
        for _ in range(2):
            assert through(stack, server, "203.0.113.1")[1] == ""
        assert closed(folder, "max_connections_per_ip") == 2
        assert "refused 203.0.113.1:5000: per-address connection limit reached" in server.stderr()
        waiting = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
        wait_until(lambda: status(folder)["totals"]["accepted"] == 9)

        rows = connections(folder)
        assert Counter(row["worker"] for row in rows if row["phase"] == "open") == {0: 3, 1: 3}
        proxied = {row["proxy"]: row["peer"] for row in rows if row["phase"] == "open"}
        assert set(proxied) == {f"127.0.0.1:{port}" for _, port in clients}
        assert sorted(proxied.values()) == sorted(f"203.0.113.{number // 2}:5000" for number in range(6))
        (row,) = [row for row in rows if row["phase"] == "proxy"]
        assert (row["peer"], row["proxy"]) == (f"127.0.0.1:{waiting.getsockname()[1]}", None)

        # By the client's network, and one that waits by the id that it has until then.
        assert command(folder, "kick", "203.0.113.2/32", "--yes").returncode == 0
        assert command(folder, "kick", row["id"]).returncode == 0
        assert waiting.recv(10) == b""
        wait_until(lambda: closed(folder, "kicked") == 3)
        assert through(stack, server, "203.0.113.2")[1]

        for data, reason in ((b"GET /\r\n", "proxy_malformed"), (b"", "done")):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
                sock.sendall(data)
                # It may have been closed already, for what it sent.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    assert sock.recv(10) == b""
            wait_until(lambda reason=reason: closed(folder, reason) == 1)
        assert "there is no header (--proxy-protocol)" in server.stderr()
        stack.close()
        assert server.stop() == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    assert all(len(line) == 10 for line in lines)
    assert Counter(line[9] == "-" for line in lines) == {True: 3, False: 9}
    assert all(line[1].startswith("203.0.113.") for line in lines if line[9] != "-")


def test_the_trust_list_is_read_again_by_a_reload(folder: Path) -> None:
    config = folder / "prefork.toml"
    config.write_text('proxy_protocol = "v1"\nproxy_from = ["192.0.2.0/24"]\n')
    with contextlib.ExitStack() as stack, serving(folder, workers=1) as server:
        assert through(stack, server, "203.0.113.1")[1] == ""
        assert closed(folder, "proxy_untrusted") == status(folder)["totals"]["refused"] == 1
        assert "it is none of the trusted proxies (--proxy-from)" in server.stderr()
        config.write_text('proxy_protocol = "v1"\nproxy_from = ["192.0.2.0/24", "127.0.0.1"]\n')
        assert command(folder, "reload").returncode == 0
        assert through(stack, server, "203.0.113.1")[1] == "203.0.113.1:5000 127.0.0.1\n"
        config.write_text('proxy_from = "127.0.0.1"\n')
        done = command(folder, "reload")
        assert done.returncode != 0
        assert "is of no use without --proxy-protocol" in done.stdout + done.stderr


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_program_on_a_loop_sees_the_client(tmp_path: Path, loop: str) -> None:
    (tmp_path / "program.py").write_text(LOOP_PROGRAM)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(run_program("program.py", loop, options=("-w", "2", *BEHIND), cwd=tmp_path))
        for _ in range(3):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            sock.sendall(v1("203.0.113.7") + b"hello\n")
            assert sock.recv(1000) == b"('203.0.113.7', 5000) ('203.0.113.7', 5000) hello\n"


@pytest.mark.parametrize("how", ["accept", pytest.param("select", marks=pytest.mark.slow)])
def test_a_program_that_accepts_by_itself_is_refused_at_the_start(tmp_path: Path, how: str) -> None:
    (tmp_path / "program.py").write_text(OWN_PROGRAM)
    options = ("-w", "1", *BEHIND)
    with run_program("program.py", how, options=options, cwd=tmp_path, wait_ready=False) as server:
        assert server.wait() == 3
        assert "--proxy-protocol: the program accepts connections by itself" in server.stderr()
