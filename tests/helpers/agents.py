"""Ask the address of --agent, as HAProxy does."""

from __future__ import annotations

import re
import socket

from prefork.testing import Server


def agent_port(server: Server) -> int:
    """Return the port of --agent, which the log names."""
    return int(re.findall(r"agent checks on [\d.]+:(\d+) ", server.stderr())[-1])


def ask_agent(port: int, send: bytes = b"") -> str:
    """Return the whole answer of an agent check, which ends with the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock, sock.makefile("rb") as file:
        sock.sendall(send)
        return file.read().decode()
