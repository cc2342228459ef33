"""The table of connections: what workers claim, joined with what the kernel says, filtered and sorted."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.console.joining import SORT_KEYS, Listeners, Row, facts_of, join, select
from prefork.console.kicking import parse_id
from prefork.console.servers import WorkerLink
from prefork.core.console_protocol import WorkerRow
from prefork.core.kicking import PeerFilter
from prefork.core.sock_diag import INET, INET6, TCPSocket, UnixSocket
from prefork.core.tcp_info import TCPInfo

LISTENERS = Listeners(["127.0.0.1:9000 (tcp)", "0.0.0.0:9001 (tcp)", "[::]:9002 (tcp)", "unix:/run/x (unix)"])
INFO = {
    TCPInfo.BYTES_RECEIVED: 100,
    TCPInfo.BYTES_SENT: 2000,
    TCPInfo.NOT_SENT: 30,
    TCPInfo.LAST_DATA_SENT: 5000,
    TCPInfo.LAST_DATA_RECEIVED: 7000,
    TCPInfo.RTT: 1500,
    TCPInfo.BUSY_TIME: 9_000_000,
    TCPInfo.LIMITED_BY_RECEIVER: 6_000_000,
    TCPInfo.LIMITED_BY_SEND_BUFFER: 1_000_000,
}


def tcp_info() -> bytes:
    info = bytearray(256)
    for field, value in INFO.items():
        offset, size = field.value
        struct.pack_into("=I" if size == 4 else "=Q", info, offset, value)
    return bytes(info)


def tcp(inode: int, local: str = "127.0.0.1", port: int = 9000, peer: str = "10.0.0.1", state: int = 1) -> TCPSocket:
    ends = [(ipaddress.ip_address(host).packed, number) for host, number in ((local, port), (peer, 40000 + inode))]
    return TCPSocket(inode, 2, ends[0], ends[1], state, False, 0, 0, 0, bytes(8), tcp_info(), 0)


def link(slot: int, has_console: bool = True) -> WorkerLink:
    return WorkerLink(slot, 100 + slot, 0, "ready", has_console, None)


def said(number: int, inode: int, **more: Any) -> WorkerRow:
    return WorkerRow(number, inode, "192.0.2.9:1", "open", 3.0, 5, "")._replace(**more)


def never(pid: int, inode: int) -> bool:
    raise AssertionError("no claim is doubtful")


def test_a_row_has_what_both_know_and_the_kernel_is_believed() -> None:
    (row,), unclaimed = join({link(0): [said(7, 1, tls="TLSv1.3")]}, {}, [tcp(1)], LISTENERS, never)
    assert row.as_json() == {
        "id": "0-7",
        "peer": "10.0.0.1:40001",
        "listener": "127.0.0.1:9000",
        "worker": 0,
        "pid": 100,
        "phase": "open",
        "age": 3.0,
        "idle": 5.0,
        "rx": 100,
        "tx": 2000,
        "unsent": 35,
        "tls": "TLSv1.3",
        "proxy": None,
        "stale": False,
    }
    assert unclaimed == 0
    facts = facts_of(row.kernel)
    assert facts["rtt"] == 0.0015
    assert facts["limited_by"] == {"receiver": 6.0, "send_buffer": 1.0, "network": 2.0}
    assert facts_of(None) == {}


def test_behind_a_proxy_the_peer_is_what_the_worker_says_and_the_kernel_knows_the_proxy() -> None:
    (row,), _ = join({link(0): [said(7, 1, proxy="192.0.2.1:1")]}, {}, [tcp(1)], LISTENERS, never)
    assert (row.peer, row.proxy) == ("192.0.2.9:1", "10.0.0.1:40001")
    (row,), _ = join({link(0): [said(7, 0, proxy="unix")]}, {}, [], LISTENERS, never)
    assert (row.peer, row.proxy) == ("192.0.2.9:1", "unix")


def test_of_a_silent_worker_and_of_a_program_the_kernel_tells() -> None:
    sockets = [tcp(1), tcp(2, state=5), tcp(3)]
    rows, unclaimed = join({}, {link(0): [1, 99], link(1, has_console=False): [2]}, sockets, LISTENERS, never)
    assert [(row.id, row.worker, row.phase, row.stale, row.rx) for row in rows] == [
        (None, 0, "unknown", True, 100),
        (None, 1, "closing", False, 100),
    ]
    assert unclaimed == 1


def test_a_socket_that_the_kernel_does_not_have_is_shown_as_its_worker_says() -> None:
    (row,), _ = join({link(0): [said(1, 0)]}, {}, [], LISTENERS, never)
    assert (row.peer, row.rx, row.idle, row.listener, row.unsent) == ("192.0.2.9:1", None, None, "", 5)


@pytest.mark.parametrize("owner", [100, 101])
def test_of_two_claims_that_of_the_owner_counts(owner: int) -> None:
    answers = {link(0): [said(1, 1)], link(1): [said(2, 1), said(3, 2)]}
    rows, _ = join(answers, {}, [tcp(1), tcp(2)], LISTENERS, lambda pid, inode: (pid, inode) == (owner, 1))
    assert {row.id for row in rows} == ({"0-1", "1-3"} if owner == 100 else {"1-2", "1-3"})


def test_listeners_are_named_as_the_status_names_them() -> None:
    names = [LISTENERS.name_of(tcp(1)), LISTENERS.name_of(tcp(1, "10.0.0.9", 9001))]
    names += [LISTENERS.name_of(tcp(1, "::1", 9002)), LISTENERS.name_of(tcp(1, "10.0.0.9", 5))]
    assert names == ["127.0.0.1:9000", "0.0.0.0:9001", "[::]:9002", "10.0.0.9:5"]
    assert sorted(LISTENERS.endpoints) == [(INET, 9000), (INET, 9001), (INET6, 9002)]
    sockets = [UnixSocket(1, False, b"/run/x", 9, 0, 0), UnixSocket(2, False, b"/run/y", 8, 0, 0)]
    rows, unclaimed = join({}, {link(0): [1, 2]}, sockets, LISTENERS, never)
    assert [(row.peer, row.listener) for row in rows] == [("unix", "unix:/run/x")]
    assert unclaimed == 0


def test_rows_are_filtered_sorted_and_counted() -> None:
    sockets = [tcp(inode, peer=f"10.0.{inode % 2}.1") for inode in range(1, 7)]
    rows, _ = join({link(0): [said(n, n, age=n) for n in range(1, 7)]}, {}, sockets, LISTENERS, never)
    shown, more = select(rows, sort="age", limit=2)
    assert ([row.age for row in shown], more) == ([6, 5], 4)
    assert [row.age for row in select(rows, sort="-age")[0]] == [1, 2, 3, 4, 5, 6]
    assert [row.id for row in select(rows, peers=PeerFilter(["10.0.1.0/24"]))[0]] == ["0-1", "0-3", "0-5"]
    assert select(rows, worker=1) == ([], 0)


ROWS = st.builds(
    Row,
    peer=st.text(max_size=5),
    worker=st.integers(0, 3),
    pid=st.integers(1, 9),
    id=st.none() | st.builds("{}-{}".format, st.integers(0, 3), st.integers(0, 99)),
    age=st.none() | st.floats(0, 100),
    rx=st.none() | st.integers(0, 100),
    tls=st.none() | st.sampled_from(["TLSv1.2", "TLSv1.3"]),
)


@given(st.lists(ROWS, max_size=8), st.sampled_from([*SORT_KEYS, *(f"-{key}" for key in SORT_KEYS)]), st.integers(0, 5))
def test_any_rows_can_be_sorted_by_any_key(rows: list[Row], key: str, limit: int) -> None:
    shown, more = select(rows, sort=key, limit=limit)
    assert len(shown) + more == len(rows)
    assert all(row in rows for row in shown)


@pytest.mark.parametrize("wrong", ["", "1", "1-", "-1", "a-1", "1-b", "1-2-3", "٣-1", "1" * 20 + "-" + "1" * 20])
def test_what_is_no_id_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no id"):
        parse_id(wrong)
    assert parse_id("3-15") == (3, 15)


def test_a_connection_of_another_server_on_the_same_port_is_not_missing() -> None:
    ours, theirs = tcp(1), tcp(2, local="127.0.0.2")
    assert join({}, {}, [ours, theirs, tcp(3, port=9001), tcp(4, "::1", 9002)], LISTENERS, never) == ([], 3)
