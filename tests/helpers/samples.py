"""A server that is not there: what `status` would say of it, and an HTTP server that shows the page with that."""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from prefork.exporter import page as status_page

Status = dict[str, Any]

_SHARES = {"done": 0.91, "peer_reset": 0.05, "idle_timeout": 0.025, "handler_failed": 0.01, "max_age": 0.005}


def sample(turn: int) -> Status:
    """Return the status of a busy server of four workers, two seconds after that of the turn before."""
    uptime = 277_220.0 + 2 * turn
    workers = [_worker(slot, turn) for slot in range(4)]
    accepted = 41_200_000 + 2 * sum(int(1300 + 400 * _wave(each, 0)) for each in range(turn))
    opened = sum(worker["open"] for worker in workers)
    closed = {reason: int((accepted - opened) * share) for reason, share in _SHARES.items()}
    closed["done"] += accepted - opened - sum(closed.values())
    stored = 90_000 + 40 * turn
    if turn % 40 > 30:
        workers.append({**_worker(2, 0), "pid": 1911, "generation": 11, "state": "draining", "open": 0, "unsent": 0})
    return {
        "ok": True,
        "schema": 2,
        "version": "1.0",
        "streams": "compiled",
        "target": "chat.service:handle",
        "config": "/etc/prefork/chat.toml",
        "pid": 2141,
        "predecessor": None,
        "upgrading": False,
        "state": "serving",
        "started": 1_760_000_000.0,
        "uptime": uptime,
        "generation": 12,
        "reloading": False,
        "suspended": False,
        "reloads": {
            "ok": 11,
            "failed": 1,
            "last": {"generation": 12, "result": "ok", "at": 1_760_260_000.0, "reason": None},
        },
        "listeners": ["0.0.0.0:9000 (tcp)", "[::]:9000 (tcp)", "0.0.0.0:9443 (tls)", "unix:/run/chat.sock (tcp)"],
        "queues": [
            {"listener": "0.0.0.0:9000", "waiting": int(10 + 8 * _wave(turn, 3)), "limit": 1024},
            {"listener": "[::]:9000", "waiting": 0, "limit": 1024},
            {"listener": "0.0.0.0:9443", "waiting": 2, "limit": 1024},
        ],
        "workers_target": 4,
        "limit": 20_000,
        "certificates": [{"file": "/etc/prefork/tls/chat.example.pem", "not_after": 1_764_000_000.0}],
        "deaths": {"hang": 1, "exit": 3},
        "totals": {
            "accepted": accepted,
            "open": opened,
            "closed": closed,
            "refused": 1312,
            "refusals": {"max_connections_per_ip": 1290, "descriptors": 22},
            "received": accepted * 5_100,
            "sent": accepted * 21_400,
            "handler_failures": 412,
            "handshakes": {"TLSv1.3 new": 1_204_331, "TLSv1.3 resumed": 8_103_221, "failed": 2_044, "timeout": 0},
            "durations": {
                "bounds": [0.01, 0.1, 1, 10, 60, 300, 1800, 3600, 21600, 86400, 604800],
                "counts": [int((accepted - opened) * share) for share in _DURATIONS],
                "sum": 1e9,
            },
            "log_dropped": 0,
        },
        "slots": [
            {"slot": slot, "state": "ready", "retry_in": None, "restarts": (0, 3, 0, 1)[slot], "last_exit": _ENDS[slot]}
            for slot in range(4)
        ],
        "workers": workers,
        "service": [
            {"name": "messages", "kind": "counter", "labels": {"kind": "text"}, "value": 812_331 + 230 * turn},
            {"name": "messages", "kind": "counter", "labels": {"kind": "picture"}, "value": 24_120 + 4 * turn},
            {"name": "rooms", "kind": "gauge", "labels": {}, "value": 1204},
            {"name": "store_seconds", "kind": "histogram", "labels": {}, "count": stored, "sum": 0.003 * stored},
        ],
    }


_DURATIONS = (0.01, 0.05, 0.21, 0.34, 0.19, 0.11, 0.05, 0.02, 0.01, 0.005, 0.004, 0.001)
_ENDS = (None, "exit status 1", None, "signal 9 (killed by --hang-timeout)")


def _wave(turn: int, phase: float) -> float:
    return math.sin(turn / 17 + phase) * 0.7 + math.sin(turn / 3.1 + 2 * phase) * 0.3


def _worker(slot: int, turn: int) -> Status:
    turns = range(turn)
    accepted = 10_300_000 + 2 * sum(int(325 + 100 * _wave(each, slot / 4)) for each in turns)
    return {
        "slot": slot,
        "pid": 2144 + 7 * slot,
        "generation": 12,
        "state": "ready",
        "paused": None,
        "age": 17_000.0 + 2 * turn,
        "heartbeat_age": 0.2,
        "rss": 48_000_000 + 1_300_000 * slot + 20_000 * turn,
        "cpu": 9000 + 2 * sum(0.31 + 0.1 * _wave(each, slot / 4) for each in turns),
        "fds": 2600,
        "open": int(2540 + 120 * _wave(turn, slot / 4)),
        "unsent": int(90_000 * (1 + _wave(turn, slot))),
        "handshakes_waiting": 0,
        "lag": {"p50": 0.0004, "p99": 0.006 + 0.003 * _wave(turn, slot)},
        "accepted": accepted,
        "received": accepted * 5_100,
        "sent": accepted * 21_400,
        "refused": 328,
        "closed": {},
        "refusals": {},
    }


@contextlib.contextmanager
def showing(status: Callable[[int], Status | None]) -> Iterator[str]:
    """Serve the page with the status of turn 0, 1, 2 ... (None: no answer); yields its address."""
    turns = iter(range(1_000_000))

    connections: set[socket.socket] = set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def setup(self) -> None:
            super().setup()
            connections.add(self.connection)

        def finish(self) -> None:
            connections.discard(self.connection)
            super().finish()

        def do_GET(self) -> None:
            if self.path == "/":
                self._answer(
                    200,
                    [("Content-Type", "text/html; charset=utf-8"), *status_page.FIELDS.items()],
                    status_page.page(status(0)),
                )
            elif self.path == "/status.json" and (found := status(next(turns))) is not None:
                self._answer(200, (("Content-Type", "application/json"),), json.dumps(found).encode())
            else:
                self._answer(503 if self.path == "/status.json" else 404, (), b"")

        def _answer(self, code: int, headers: Any, body: bytes) -> None:
            self.send_response(code)
            for name, value in (*headers, ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep the output of the tests clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        for each in list(connections):  # a browser keeps spare ones, on which it asks nothing
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        server.server_close()
