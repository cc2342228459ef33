"""The table of connections: what the workers say, joined with what the kernel says of the same sockets.

Pure: values in, rows out. A socket's inode is what both sides name it by. A worker is not trusted: where the kernel
knows better, as with the peer's address, it is believed. What a proxy told of the peer only the worker knows; the proxy
is shown beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.console_protocol import WorkerRow
from ..core.kicking import PeerFilter
from ..core.sock_diag import INET, INET6, TCPSocket, UnixSocket, format_endpoint
from ..core.tcp_info import TCPInfo
from .servers import WorkerLink

Socket = TCPSocket | UnixSocket
_ESTABLISHED, _CLOSE_WAIT = 1, 8


@dataclass(slots=True)
class Row:
    """One connection. What is not known is None."""

    peer: str
    worker: int
    """The slot of the worker."""
    pid: int
    id: str | None = None
    """SLOT-N; unique among the connections of one process. None if only the kernel was asked."""
    listener: str = ""
    phase: str = "unknown"
    age: float | None = None
    """Seconds."""
    idle: float | None = None
    """Seconds without a byte in either direction."""
    rx: int | None = None
    tx: int | None = None
    unsent: int | None = None
    """Bytes that the handler has written and that have not left the machine."""
    tls: str | None = None
    proxy: str | None = None
    """The address of the proxy that told the peer's."""
    stale: bool = False
    """The worker did not answer: this is what the kernel knows."""
    kernel: Socket | None = None
    """What the kernel says of its socket."""

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COLUMNS}


#: The keys of a row, in their order.
COLUMNS = (
    *("id", "peer", "listener", "worker", "pid", "phase", "age", "idle", "rx", "tx", "unsent", "tls", "proxy"),
    "stale",
)
#: What rows can be sorted by; numbers with the largest first, unless the name has a "-" before it.
SORT_KEYS = tuple(each for each in COLUMNS if each != "stale")


class Listeners:
    """The listeners of a server, as `prefork status` names them: `127.0.0.1:9000 (tcp)`, `unix:/run/x (unix)`."""

    def __init__(self, described: Iterable[str]) -> None:
        names = [each.rpartition(" (")[0] or each for each in described]
        self.unix = {_unix_name(each): each for each in names if each.startswith("unix:")}
        self._tcp: dict[int, list[str]] = {}
        for each in names:
            port = each.rpartition(":")[2]
            if not each.startswith("unix:") and port.isdigit():
                self._tcp.setdefault(int(port), []).append(each)

        self._known: dict[tuple[bytes, int], str] = {}

    @property
    def endpoints(self) -> set[tuple[int, int]]:
        """Return the families that the kernel has to be asked for, each with a port."""
        return {(family, port) for port, names in self._tcp.items() for each in names for family in _families_of(each)}

    def name_of(self, sock: Socket) -> str:
        """Return the name of the listener that accepted a connection; its local address if that is none of ours."""
        if isinstance(sock, UnixSocket):
            return self.unix.get(sock.name, "unix")
        name = self._known.get(sock.local)
        if name is None:
            # Thousands of connections have the same few local addresses.
            name = self._known[sock.local] = self._find(sock)
        return name

    def accepted(self, sock: Socket) -> bool:
        """Return whether a TCP connection came from one of these listeners: another server may have the same port on
        another address."""
        return isinstance(sock, TCPSocket) and self.name_of(sock) in self._tcp.get(sock.local[1], ())

    def _find(self, sock: TCPSocket) -> str:
        local = format_endpoint(sock.local)
        known = self._tcp.get(sock.local[1], [])
        if local in known:
            return local
        wildcard = "[" if len(sock.local[0]) == 16 else "0"
        return next((each for each in known if each.startswith((wildcard, "*"))), local)


def _families_of(listener: str) -> tuple[int, ...]:
    """Return the families of the connections that a listener has: both, if its name does not say."""
    if listener.startswith("["):
        return (INET6,)
    return (INET,) if listener[0].isdigit() else (INET, INET6)


def _unix_name(listener: str) -> bytes:
    path = listener.removeprefix("unix:")
    return (b"\0" + path[1:].encode()) if path.startswith("@") else path.encode("utf-8", "surrogateescape")


def join(
    answers: Mapping[WorkerLink, Iterable[WorkerRow]],
    open_sockets: Mapping[WorkerLink, Iterable[int]],
    sockets: Iterable[Socket],
    listeners: Listeners,
    owns: Callable[[int, int], bool],
) -> tuple[list[Row], int]:
    """Return the rows, and the number of connections that the kernel has and no worker.

    `answers` are what workers say, and `open_sockets` the inodes of those that were not asked or did not answer. `owns`
    says whether a process has a socket; it is asked where two workers claim the same one.
    """
    known = {each.inode: each for each in sockets if not each.listens}
    claims: dict[int, tuple[WorkerLink, Row]] = {}
    closed: list[Row] = []
    for worker, said in answers.items():
        for each in said:
            if not each.inode:
                closed.append(_row_of_worker(worker, each, None, listeners))
            # The earlier claim was a lie, or a child of the other worker has the socket as well.
            elif each.inode not in claims or _may_claim(worker, claims[each.inode][0], each.inode, owns):
                claims[each.inode] = worker, _row_of_worker(worker, each, known.get(each.inode), listeners)
    for worker, inodes in open_sockets.items():
        for inode in inodes:
            sock = known.get(inode)
            if sock is None or not _is_connection(sock, listeners):
                continue
            if inode not in claims or not owns(claims[inode][0].pid, inode):
                claims[inode] = worker, _row_of_kernel(worker, sock, listeners)
    unclaimed = sum(each.inode not in claims and listeners.accepted(each) for each in known.values())
    return [*(row for _, row in claims.values()), *closed], unclaimed


def _may_claim(worker: WorkerLink, claimant: WorkerLink, inode: int, owns: Callable[[int, int], bool]) -> bool:
    return worker is not claimant and owns(worker.pid, inode)


def _is_connection(sock: Socket, listeners: Listeners) -> bool:
    # An accepted unix socket has the name of its listener, and a client that was not bound has none.
    return isinstance(sock, TCPSocket) or sock.name in listeners.unix


def _row_of_worker(worker: WorkerLink, said: WorkerRow, sock: Socket | None, listeners: Listeners) -> Row:
    row = _row_of_kernel(worker, sock, listeners)
    row.id, row.phase, row.age, row.stale = f"{worker.slot}-{said.number}", said.phase, said.age, False
    row.unsent, row.tls = said.unsent + (row.unsent or 0), said.tls or None
    if said.proxy:
        row.proxy = row.peer if isinstance(sock, TCPSocket) else said.proxy
    if said.proxy or not isinstance(sock, TCPSocket):
        row.peer = said.peer
    return row


def _row_of_kernel(worker: WorkerLink, sock: Socket | None, listeners: Listeners) -> Row:
    row = Row("unix", worker.slot, worker.pid, stale=worker.has_console, kernel=sock)
    if sock is None:
        return row
    row.listener = listeners.name_of(sock)
    if isinstance(sock, TCPSocket):
        row.peer = format_endpoint(sock.remote)
        row.rx, row.tx = sock.fact(TCPInfo.BYTES_RECEIVED), sock.fact(TCPInfo.BYTES_SENT)
        row.unsent = sock.fact(TCPInfo.NOT_SENT)
        silences = (sock.fact(TCPInfo.LAST_DATA_SENT), sock.fact(TCPInfo.LAST_DATA_RECEIVED))
        row.idle = min((each / 1000 for each in silences if each is not None), default=None)
        if not worker.has_console:
            row.phase = "open" if sock.state in (_ESTABLISHED, _CLOSE_WAIT) else "closing"
    return row


def select(
    rows: Iterable[Row], worker: int | None = None, peers: PeerFilter | None = None, sort: str = "", limit: int = 0
) -> tuple[list[Row], int]:
    """Return the rows of a worker and of peers, sorted and `limit` at the most, and how many more there are.

    `sort` is one of SORT_KEYS, perhaps with a "-" before it, which reverses the order.
    """
    found = [each for each in rows if worker is None or each.worker == worker]
    if peers is not None:
        found = [each for each in found if peers.matches_text(each.peer)]
    key = sort.lstrip("-") or "id"
    numbers = key in ("age", "idle", "rx", "tx", "unsent")
    found.sort(key=lambda row: _sort_value(row, key), reverse=numbers is not sort.startswith("-"))
    shown = found[:limit] if limit else found
    return shown, len(found) - len(shown)


def _sort_value(row: Row, key: str) -> tuple[Any, ...]:
    if key == "id":
        slot, _, number = (row.id or "").partition("-")
        return (row.worker, int(number) if slot else -1)
    value = getattr(row, key)
    # None is less than anything.
    return (value is not None, value) if value is not None else (False,)


def facts_of(sock: Socket | None) -> dict[str, Any]:
    """Return what the kernel knows of one connection: times in seconds, sizes in bytes, windows in segments."""
    if sock is None:
        return {}
    facts: dict[str, Any] = {"receive_queue": sock.receive_queue, "send_queue": sock.send_queue}
    if isinstance(sock, TCPSocket):
        busy, receiver, buffer = (
            sock.fact(field) or 0
            for field in (TCPInfo.BUSY_TIME, TCPInfo.LIMITED_BY_RECEIVER, TCPInfo.LIMITED_BY_SEND_BUFFER)
        )
        facts |= {
            "rtt": _seconds(sock.fact(TCPInfo.RTT)),
            "rtt_variation": _seconds(sock.fact(TCPInfo.RTT_VARIATION)),
            "retransmissions": sock.fact(TCPInfo.TOTAL_RETRANSMITS),
            "retransmissions_in_a_row": sock.fact(TCPInfo.RETRANSMITS),
            "congestion_window": sock.fact(TCPInfo.CONGESTION_WINDOW),
            "not_sent": sock.fact(TCPInfo.NOT_SENT),
            "bytes_acknowledged": sock.fact(TCPInfo.BYTES_ACKNOWLEDGED),
            "limited_by": {
                "receiver": _seconds(receiver),
                "send_buffer": _seconds(buffer),
                "network": _seconds(max(0, busy - receiver - buffer)),
            },
            "drops": sock.drops,
            "uid": sock.uid,
        }
    return facts


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6
