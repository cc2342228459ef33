"""How a process ended, from both kinds of wait and in words; and the owners of descriptors."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.system.child import Child, ExitStatus
from prefork.system.descriptors import Descriptor
from prefork.system.parent_death import Lifeline


@given(st.integers(0, 255))
def test_an_exit_status_is_distinguished_from_a_signal(code: int) -> None:
    status = ExitStatus.from_status(code << 8)
    assert status == ExitStatus(code)
    assert status.clean == (code == 0)
    assert status.describe() == f"exit status {code}"


@given(st.integers(1, 64), st.booleans())
def test_a_signal_is_distinguished_from_an_exit_status(number: int, core: bool) -> None:
    status = ExitStatus.from_status(number | (0x80 if core else 0))
    assert status == ExitStatus(None, number, core)
    assert not status.clean
    assert status.describe().startswith(f"signal {number}")
    assert status.describe().endswith("core dumped") == core


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (ExitStatus(3), "exit status 3"),
        (ExitStatus(None, signal.SIGKILL), "signal 9 (SIGKILL)"),
        (ExitStatus(None, signal.SIGSEGV, True), "signal 11 (SIGSEGV), core dumped"),
        (ExitStatus(None, 40), "signal 40"),
        (ExitStatus(None), "unknown status (other code in this process waited for it)"),
    ],
)
def test_an_exit_status_is_described_with_number_and_name(status: ExitStatus, text: str) -> None:
    assert status.describe() == text


@pytest.mark.parametrize(
    ("code", "number", "status"),
    [
        (os.CLD_EXITED, 7, ExitStatus(7)),
        (os.CLD_KILLED, 15, ExitStatus(None, 15)),
        (os.CLD_DUMPED, 6, ExitStatus(None, 6, True)),
    ],
)
def test_waitid_and_waitpid_give_the_same_status(code: int, number: int, status: ExitStatus) -> None:
    info = os.waitid_result((1, 0, signal.SIGCHLD, number, code))
    assert ExitStatus.from_siginfo(info) == status


def test_a_descriptor_is_closed_once_and_then_raises() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    owned = Descriptor(reader)
    assert owned.fileno() == reader
    owned.close()
    reused, writer = os.pipe()  # takes the same number
    try:
        assert reused == reader
        owned.close()
        os.fstat(reused)  # still open: the second close touched nothing
        with pytest.raises(ValueError, match="closed"):
            owned.fileno()
    finally:
        os.close(reused)
        os.close(writer)


def test_a_lifeline_breaks_when_its_writer_is_closed() -> None:
    line = Lifeline()
    try:
        assert not line.broken()
        line.writer.close()
        assert line.broken()
    finally:
        line.close()


def test_a_closed_child_is_not_signalled() -> None:
    # This process's own pid, which a signal sent by pid would reach.
    child = Child(os.getpid(), os.pidfd_open(os.getpid()))
    assert child.signal(0)
    child.close()
    assert not child.signal(signal.SIGKILL)


def test_without_a_pidfd_a_child_is_not_signalled_once_it_is_reaped() -> None:
    # A living process that is not a child, as if the pid had been reused.
    child = Child(os.getppid(), None)
    assert child.signal(0)
    assert child.reap() == ExitStatus(None)
    assert not child.signal(0)
