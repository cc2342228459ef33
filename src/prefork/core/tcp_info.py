"""The layout of struct tcp_info, by which the kernel describes one TCP connection or listener.

Pure: bytes in, numbers out. `system/tcp_info.py` and `system/sock_diag.py` ask the kernel for the bytes.
"""

from __future__ import annotations

import enum
import struct


class TCPInfo(enum.Enum):
    """The fields that are of use: offset and size in bytes (linux/tcp.h). The kernel only ever appends fields."""

    STATE = 0, 1
    """1: established."""
    RETRANSMITS = 2, 1
    """Retransmissions in a row, of what the peer has not acknowledged."""
    UNACKED = 24, 4
    """Segments that are not acknowledged; of a listener, the length of its accept queue (tcp(7))."""
    SACKED = 28, 4
    """Of a listener, the limit of its accept queue."""
    LAST_DATA_SENT = 44, 4
    """Milliseconds since the last data was sent; so are those of the next."""
    LAST_DATA_RECEIVED = 52, 4
    RTT = 68, 4
    """The smoothed round-trip time in microseconds."""
    RTT_VARIATION = 72, 4
    CONGESTION_WINDOW = 80, 4
    """In segments."""
    TOTAL_RETRANSMITS = 100, 4
    """Segments sent again since the start."""
    BYTES_ACKNOWLEDGED = 120, 8
    BYTES_RECEIVED = 128, 8
    """Everything that has arrived in order, TLS records and the peer's FIN included."""
    SEGMENTS_IN = 140, 4
    NOT_SENT = 144, 4
    """Bytes in the send buffer that were never sent."""
    DATA_SEGMENTS_IN = 152, 4
    DATA_SEGMENTS_OUT = 156, 4
    BUSY_TIME = 168, 8
    """Microseconds with data to send; of these, the two below name the reason of a wait."""
    LIMITED_BY_RECEIVER = 176, 8
    LIMITED_BY_SEND_BUFFER = 184, 8
    BYTES_SENT = 200, 8
    BYTES_SENT_AGAIN = 208, 8
    """Of those sent, the retransmitted ones."""

    def __init__(self, offset: int, size: int) -> None:
        self.end = offset + size
        """The bytes that the kernel has to give, so that the field is among them."""
        self._unpack = struct.Struct({1: "=B", 4: "=I", 8: "=Q"}[size]).unpack_from
        self._offset = offset

    def of(self, info: bytes) -> int | None:
        """Return the field's value in what the kernel gave; None if this kernel does not have it."""
        if len(info) < self.end:
            return None
        value: int = self._unpack(info, self._offset)[0]
        return value
