"""The scoreboard across processes: what a worker can write, and what it cannot."""

from __future__ import annotations

import signal

from helpers.forked import running

BOARD = """
import ctypes, os, sys
from prefork.system.scoreboard import FleetSetting, WorkerStat, Scoreboard

board = Scoreboard(8)
mine, other = board.row(1), board.row(2)
other[WorkerStat.HEARTBEAT] = 5
board.settings[FleetSetting.SLOTS] = 3

def child(do):
    pid = os.fork()
    if pid == 0:
        try:
            do(board.become_writer(1))
            os._exit(0)
        except BaseException as exc:
            print("raised", repr(exc), flush=True)
            os._exit(1)
    return os.waitpid(pid, 0)[1]
"""


def test_a_worker_writes_its_own_row_and_reads_the_others() -> None:
    code = BOARD + (
        "def do(row):\n"
        "    assert (row.number, board.row(2)[WorkerStat.HEARTBEAT], board.settings[FleetSetting.SLOTS]) == (1, 5, 3)\n"
        "    row.reserve(2); row.accepted(5); row.accepted(6); row.reserve(-1); row[WorkerStat.HEARTBEAT] = 77\n"
        "print(child(do), mine[WorkerStat.ACCEPTED], mine[WorkerStat.OPEN], mine[WorkerStat.HEARTBEAT])\n"
        "mine = board.clear(1)\n"
        "print(mine[WorkerStat.ACCEPTED], mine[WorkerStat.OPEN], other[WorkerStat.HEARTBEAT])\n"
    )
    with running(code) as script:
        assert script.end() == 0, script.err
        assert script.lines(2) == [["0", "2", "1", "77"], ["0", "0", "5"]]


def test_writing_to_another_row_kills_the_worker_and_changes_nothing() -> None:
    code = BOARD + (
        "def sibling(row):\n    board.row(2)[WorkerStat.HEARTBEAT] = 1\n"
        "def supervisor(row):\n    board.settings[FleetSetting.SLOTS] = 1\n"
        "print(child(sibling), child(supervisor), other[WorkerStat.HEARTBEAT], board.settings[FleetSetting.SLOTS])\n"
    )
    with running(code) as script:
        assert script.end() == 0
        first, second, beat, slots = map(int, script.lines(1)[0])
        assert (first & 127, second & 127) == (signal.SIGSEGV, signal.SIGSEGV)
        assert (beat, slots) == (5, 3)


def test_a_worker_cannot_regain_the_right_to_write() -> None:
    """Neither by changing the protection of the memory, nor by a descriptor, because none is left."""
    code = BOARD + (
        "def protect(row):\n"
        "    libc = ctypes.CDLL(None, use_errno=True)\n"
        "    address = ctypes.addressof(board.row(2)._cells)\n"
        "    assert libc.mprotect(ctypes.c_void_p(address), 4096, 3) == -1, 'writable again'\n"
        "def search(row):\n"
        "    links = []\n"
        "    for fd in os.listdir('/proc/self/fd'):\n"
        "        try: links.append(os.readlink(f'/proc/self/fd/{fd}'))\n"
        "        except OSError: pass\n"
        "    assert not [link for link in links if 'scoreboard' in link], links\n"
        "print(child(protect), child(search))\n"
    )
    with running(code) as script:
        assert script.end() == 0
        assert script.lines(1) == [["0", "0"]], script.out
