"""Replies of a server as a test wants them, without a server: `status` of schema 2 and rows of connections."""

from __future__ import annotations

import random
import sys
from typing import Any

from prefork.console.connections import Connections
from prefork.console.joining import Row
from prefork.core.sock_diag import TCPSocket
from prefork.core.tcp_info import TCPInfo

#: The Unix time of the first reply.
CLOCK = 1_800_000_000.0


def counters(accepted: int, open: int, scale: int = 1) -> dict[str, Any]:
    """Return counters that agree with each other: accepted = open + closed."""
    reasons = ("done", "peer_reset", "idle_timeout", "handshake_failed", "handler_failed", "kicked", "worker_died")
    closed = dict.fromkeys(reasons, 0)
    left = accepted - open
    for reason, share in (("peer_reset", 0.03), ("idle_timeout", 0.1), ("handshake_failed", 0.002)):
        closed[reason] = int((accepted - open) * share)
        left -= closed[reason]
    closed["done"] = left
    return {
        "accepted": accepted,
        "closed": closed,
        "refused": accepted // 1000,
        "refusals": {"max_connections": accepted // 1000, "max_connections_per_ip": 0, "descriptors": 0},
        "received": accepted * 812 * scale,
        "sent": accepted * 4_096 * scale,
        "handler_failures": accepted // 50_000,
        "handshakes": {"TLSv1.3 new": accepted // 2, "TLSv1.3 resumed": accepted // 3, "failed": accepted // 500},
        "durations": {"bounds": [0.01, 1, 60, 3600], "counts": [3, accepted // 2, accepted // 3, 40, 0], "sum": 9.5},
        "handshake_durations": {"bounds": [0.001, 0.005, 0.1], "counts": [0, accepted, 9, 1], "sum": 2.5},
        "lags": {"bounds": [0.001, 0.01, 1], "counts": [accepted, accepted // 9, 3, 0], "sum": 1.0},
        "log_dropped": 0,
    }


def status(number: int = 4, seconds: float = 0.0, seed: int = 1, **changes: Any) -> dict[str, Any]:
    """Return the reply to `status` of a busy server, `seconds` after the first one; `changes` replace its values."""
    chance = random.Random(seed)
    rows = []
    for slot in range(number):
        pace, open = chance.randrange(20, 60), chance.randrange(80, 400)
        accepted = int(90_000 + slot * 1_000 + pace * seconds)
        rows.append(
            {
                "slot": slot,
                "pid": 4_243 + slot,
                "generation": 4,
                "state": "ready",
                "paused": None,
                "age": 11_520 + seconds - slot,
                "heartbeat_age": 0.1,
                "rss": (38 + chance.randrange(20)) << 20,
                "cpu": 3_000 + seconds * chance.uniform(0.2, 0.7),
                "fds": open + 12,
                "open": open,
                "unsent": chance.choice((0, 0, 3_700, 81_000)),
                "handshakes_waiting": 0,
                "lag": {"p50": 0.0004, "p99": chance.uniform(0.001, 0.012), "max": 0.02},
                **counters(accepted, open),
            }
        )
    open = sum(row["open"] for row in rows)
    reply = {
        "ok": True,
        "schema": 2,
        "version": "0.1.0",
        "streams": "compiled",
        "target": "chat.server:handle",
        "config": None,
        "pid": 4_242,
        "predecessor": None,
        "upgrading": False,
        "state": "serving",
        "started": CLOCK - 11_525,
        "uptime": 11_525 + seconds,
        "generation": 4,
        "reloading": False,
        "suspended": False,
        "reloads": {
            "ok": 4,
            "failed": 0,
            "last": {"generation": 4, "result": "ok", "at": CLOCK - 11_000, "reason": None},
        },
        "listeners": ["0.0.0.0:9000 (tcp)", "0.0.0.0:9443 (tcp)"],
        "queues": [
            {"listener": "0.0.0.0:9000", "waiting": 3, "limit": 128},
            {"listener": "0.0.0.0:9443", "waiting": 0, "limit": 128},
        ],
        "workers_target": number,
        "limit": 10_000,
        "certificates": [{"file": "/etc/ssl/chat.pem", "not_after": CLOCK + 61 * 86_400}],
        "deaths": {},
        "totals": counters(sum(row["accepted"] for row in rows), open) | {"open": open},
        "slots": [
            {"slot": slot, "state": "ready", "retry_in": None, "restarts": 0, "last_exit": None, "totals": {}}
            for slot in range(number)
        ],
        "workers": rows,
    }
    return reply | changes


def connections(number: int = 100, seconds: float = 0.0, seed: int = 1) -> Connections:
    """Return the connections of a server whose workers all answer."""
    chance = random.Random(seed)
    return Connections([_connection(index, seconds, chance) for index in range(number)], True, [], 0)


def _connection(index: int, seconds: float, chance: random.Random) -> Row:
    age, tls = chance.expovariate(1 / 900), chance.random() < 0.5
    peer = f"10.{chance.randrange(256)}.{chance.randrange(256)}.{chance.randrange(256)}:{chance.randrange(1024, 65536)}"
    if index % 17 == 5:
        peer = f"[2001:db8:{chance.randrange(65536):x}::{chance.randrange(65536):x}]:{chance.randrange(1024, 65536)}"
    return Row(
        id=f"{index % 4}-{1000 + index}",
        peer=peer,
        listener="0.0.0.0:9443" if tls else "0.0.0.0:9000",
        worker=index % 4,
        pid=4_243 + index % 4,
        phase=chance.choices(("open", "handshake", "closing", "lingering"), (90, 4, 3, 3))[0],
        age=age + seconds,
        idle=min(age, chance.expovariate(1 / 20)),
        rx=int(chance.expovariate(1 / 40_000) + seconds * 512),
        tx=int(chance.expovariate(1 / 900_000) + seconds * 4_096),
        unsent=chance.choice((0, 0, 0, 0, 4_096, 2 << 20)),
        tls=chance.choice(("TLSv1.3", "TLSv1.3", "TLSv1.2")) if tls else None,
        stale=False,
        kernel=_kernel(),
    )


def _kernel() -> TCPSocket:
    """Return what the kernel says of a connection that its peer holds up."""
    info = bytearray(240)
    for field, value in (
        (TCPInfo.RTT, 21_300),
        (TCPInfo.RTT_VARIATION, 4_000),
        (TCPInfo.TOTAL_RETRANSMITS, 2),
        (TCPInfo.CONGESTION_WINDOW, 10),
        (TCPInfo.NOT_SENT, 73_000),
        (TCPInfo.BUSY_TIME, 1_600_000),
        (TCPInfo.LIMITED_BY_RECEIVER, 1_200_000),
    ):
        offset, size = field.value
        info[offset : offset + size] = value.to_bytes(size, sys.byteorder)
    here, there = (b"\n\0\0\1", 9000), (b"\n\0\0\2", 40000)
    return TCPSocket(17, 2, here, there, 1, False, 0, 0, 81_000, b"12345678", bytes(info), 0)
