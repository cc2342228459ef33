"""What a worker's server has at the moment: written to the scoreboard with each heartbeat, not on the way of a byte.

Counts, which never go down, are in `core/account.py`.
"""

from __future__ import annotations

from typing import Final

from ..net.admission import AT_LIMIT, HANDSHAKES_FULL, OUT_OF_DESCRIPTORS, SUSPENDED
from ..net.base_server import BaseServer
from ..system.scoreboard import Pause, Row, WorkerStat

_PAUSES: Final = {
    AT_LIMIT: Pause.MAX_CONNECTIONS,
    OUT_OF_DESCRIPTORS: Pause.DESCRIPTORS,
    HANDSHAKES_FULL: Pause.HANDSHAKES,
    SUSPENDED: Pause.SUSPENDED,
}


def publish_gauges(row: Row, server: BaseServer) -> None:
    reason = server.paused_for()
    row[WorkerStat.PAUSED] = _PAUSES.get(reason, Pause.RESOURCES) if reason else Pause.NONE
    row[WorkerStat.UNSENT] = server.unsent
    row[WorkerStat.HANDSHAKES_WAITING] = server.handshakes_waiting
