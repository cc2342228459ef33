"""The soak harness in small, so that it cannot rot: it sees every loss that there is, and none where there is none."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.support import need, need_root, run_harness

from soak import __main__ as command
from soak import payload, report, scenarios
from soak.attempt import Phase, Script, Target
from soak.client import Pump
from soak.errors import HarnessError
from soak.ledger import Bin, Ledger, Unbalanced
from soak.load import Mix, Plan, script
from soak.report import Row, Verdict
from soak.scenario import Context
from soak.tally import Counts
from soak.witnesses import compare

ROOT = Path(__file__).parents[2]
QUESTION = Script("short", ((0.0, 5000),))

# --- the ledger -------------------------------------------------------------------------------------------------------


def test_every_attempt_ends_in_one_bin_and_the_bins_sum_to_the_attempts() -> None:
    ledger = Ledger()
    for end in Bin:
        ledger.settle(ledger.begin(), "tcp short", end, "a note")
    ledger.balance()
    assert (ledger.attempts, ledger.ok, ledger.lost) == (8, 1, 7)
    assert len(ledger.notes) == 7
    twice = Ledger.decode(ledger.encode())
    twice.merge(ledger)
    assert (twice.attempts, twice.ok, twice.lost) == (16, 2, 14)


def test_a_ledger_that_does_not_balance_is_rejected() -> None:
    ledger = Ledger()
    attempt = ledger.begin()
    with pytest.raises(Unbalanced):
        ledger.balance()
    ledger.settle(attempt, "tcp short", Bin.OK)
    with pytest.raises(Unbalanced):
        ledger.settle(attempt, "tcp short", Bin.OK)
    with pytest.raises(Unbalanced):
        Ledger.decode({**ledger.encode(), "attempts": 2})


# --- the payload ------------------------------------------------------------------------------------------------------


def answered(sequence: int, size: int) -> bytearray:
    sent = payload.request(sequence, size)
    return bytearray(payload.answer(sent[: payload.HEAD.size], sent[payload.HEAD.size :], 4711))


@pytest.mark.parametrize("size", [0, 1, 511, 70_000, payload.LARGEST])
def test_an_intact_answer_passes_and_names_its_worker(size: int) -> None:
    frame = answered(2**40 + 7, size)
    assert payload.missing(frame) == 0
    assert payload.verify(frame, 2**40 + 7, size) == 4711


@pytest.mark.parametrize("damage", ["bit", "sequence", "cut", "longer", "head"])
def test_a_damaged_answer_is_rejected(damage: str) -> None:
    frame = answered(7, 300)
    if damage == "bit":
        frame[200] ^= 4
    elif damage == "sequence":
        frame = answered(8, 300)
    elif damage == "cut":
        frame = answered(7, 299)
    elif damage == "longer":
        frame += b"x"
    else:
        frame[0] ^= 0x40
    with pytest.raises(payload.Wrong):
        if payload.missing(frame) <= 0:
            payload.verify(frame, 7, 300)


def test_a_server_notices_a_damaged_request() -> None:
    sent = bytearray(payload.request(7, 300))
    sent[100] ^= 1
    with pytest.raises(payload.Wrong):
        payload.answer(bytes(sent[: payload.HEAD.size]), bytes(sent[payload.HEAD.size :]), 1)


# --- every bin, by a server that is as bad as that --------------------------------------------------------------------

Behaviour = Callable[[socket.socket], None]


def receive(connection: socket.socket) -> bytes:
    """A whole request, answered rightly, but not sent."""
    received = b""
    while left := payload.missing(received):
        received += connection.recv(left)
    return payload.answer(received[: payload.HEAD.size], received[payload.HEAD.size :], 1)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def good(connection: socket.socket) -> None:
    connection.sendall(receive(connection))
    connection.recv(1)


def reset_before(connection: socket.socket) -> None:
    receive(connection)
    reset(connection)


def reset_unread(connection: socket.socket) -> None:
    """What a process that is killed with a request unread does."""
    connection.recv(1)


def reset_in_the_middle(connection: socket.socket) -> None:
    connection.sendall(receive(connection)[:100])
    reset(connection)


def reset_at_the_end(connection: socket.socket) -> None:
    connection.sendall(receive(connection))
    connection.recv(1)
    reset(connection)


def end_before(connection: socket.socket) -> None:
    receive(connection)


def end_in_the_middle(connection: socket.socket) -> None:
    connection.sendall(receive(connection)[:-1])


def wrong(connection: socket.socket) -> None:
    answer = bytearray(receive(connection))
    answer[-1] ^= 1
    connection.sendall(answer)
    connection.recv(1)


def too_much(connection: socket.socket) -> None:
    connection.sendall(receive(connection) + b"x")
    connection.recv(1)


def silent(connection: socket.socket) -> None:
    receive(connection)
    while connection.recv(100):
        pass


def deaf_to_the_end(connection: socket.socket) -> None:
    """Answers, and never says its own end."""
    connection.sendall(receive(connection))
    finished.wait(10)


finished = threading.Event()


@contextlib.contextmanager
def serving(behaviour: Behaviour, family: int, address: tuple[str, int] | str) -> Iterator[socket.socket]:
    """One connection, by a thread."""
    finished.clear()
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()

        def serve() -> None:
            # The client may have gone by then, which is what some tests are about.
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    behaviour(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener
        finally:
            finished.set()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def attempt(target: Target, steps: Script = QUESTION, **timeouts: float) -> tuple[Bin, Ledger]:
    """How one attempt ends; its ledger has it, once, and balances."""
    ledger = Ledger()
    pump = Pump(ledger, **timeouts)  # type: ignore[arg-type]  # no value but floats is given
    with contextlib.closing(pump):
        made = pump.begin(target, steps)
        pump.run(20)
    ledger.balance()
    assert ledger.attempts == 1
    assert made.end is not None
    assert ledger.bins()[made.end] == 1
    return made.end, ledger


BEHAVIOURS = [
    (good, Bin.OK),
    (reset_before, Bin.RESET_BEFORE),
    (reset_unread, Bin.RESET_BEFORE),
    (reset_in_the_middle, Bin.RESET_AFTER),
    (end_before, Bin.EARLY_END),
    (end_in_the_middle, Bin.EARLY_END),
    (wrong, Bin.WRONG),
    (too_much, Bin.WRONG),
    (silent, Bin.READ_TIMEOUT),
    (deaf_to_the_end, Bin.READ_TIMEOUT),
]


#: A unix socket is reset by input that was left unread alone.
TCP_ALONE = (reset_before, reset_in_the_middle)


@pytest.mark.parametrize(
    ("behaviour", "end", "family"),
    [(*each, socket.AF_INET) for each in BEHAVIOURS]
    + [(*each, socket.AF_UNIX) for each in BEHAVIOURS if each[0] not in TCP_ALONE],
)
def test_each_behaviour_of_a_server_has_its_bin(behaviour: Behaviour, end: Bin, family: int, tmp_path: Path) -> None:
    unix = family == socket.AF_UNIX
    with serving(behaviour, family, str(tmp_path / "s") if unix else ("127.0.0.1", 0)) as listener:
        found, ledger = attempt(Target(listener.getsockname()), read_timeout=0.5)
    assert found is end, ledger.notes
    assert ledger.exchanges == (behaviour in (good, deaf_to_the_end))


def test_a_reset_instead_of_the_servers_end_is_a_loss() -> None:
    with serving(reset_at_the_end, socket.AF_INET, ("127.0.0.1", 0)) as listener:
        found, ledger = attempt(Target(listener.getsockname()))
    assert found is Bin.RESET_AFTER
    assert ledger.exchanges == 1


def test_an_idle_connection_closed_before_its_request_has_its_bin() -> None:
    with serving(lambda connection: None, socket.AF_INET, ("127.0.0.1", 0)) as listener:
        found, _ = attempt(Target(listener.getsockname()), Script("idle", ((10.0, 10),)))
    assert found is Bin.EARLY_END


def test_an_attempt_goes_on_when_it_is_told_to_and_not_before_it_waits() -> None:
    ledger = Ledger()
    with (
        serving(good, socket.AF_INET, ("127.0.0.1", 0)) as listener,
        contextlib.closing(Pump(ledger)) as pump,
    ):
        made = pump.begin(Target(listener.getsockname()), Script("unread", ((math.inf, 10),)))
        with pytest.raises(HarnessError):
            pump.go(made)
        while made.phase is not Phase.WAITING:
            pump.turn(0.1)
        pump.go(made)
        pump.run(20)
        pump.go(made)
    assert made.end is Bin.OK


def test_a_port_without_a_listener_is_a_refusal(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert attempt(Target(sock.getsockname()))[0] is Bin.REFUSED
        assert attempt(Target(sock.getsockname()), Script("idle", ((0.1, 10),)))[0] is Bin.REFUSED
    assert attempt(Target(str(tmp_path / "nobody")))[0] is Bin.REFUSED


def test_a_full_queue_is_a_timeout_on_tcp_and_a_refusal_on_a_unix_socket(tmp_path: Path) -> None:
    """TCP drops what comes then; a unix socket says so at once."""
    with contextlib.ExitStack() as stack:
        for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, str(tmp_path / "s"))):
            listener = stack.enter_context(socket.socket(family))
            listener.bind(address)
            listener.listen(0)
            stack.enter_context(socket.socket(family)).connect(listener.getsockname())
            found, _ = attempt(Target(listener.getsockname()), connect_timeout=0.5)
            assert found is (Bin.CONNECT_TIMEOUT if family == socket.AF_INET else Bin.REFUSED)


# --- the load ---------------------------------------------------------------------------------------------------------


def test_a_plan_survives_being_text() -> None:
    plan = Plan(((0.5, Target(("127.0.0.1", 9), source="127.1.0.1")), (0.5, Target("/s", tls=True))), 100.0, 3)
    assert Plan.decode(plan.encode()) == plan


def test_the_mix_has_every_kind() -> None:
    dice = random.Random(1)
    made = [script(dice, Mix()) for _ in range(5000)]
    counts = {name: sum(each.name == name for each in made) for name in ("short", "long", "idle")}
    assert counts["short"] > 4000
    assert min(counts.values()) > 30
    assert all(0 <= size <= payload.LARGEST for each in made for _, size in each.steps)


# --- the witnesses ----------------------------------------------------------------------------------------------------

LEDGER = Ledger.decode(
    {"attempts": 3, "exchanges": 5, "kinds": {"tcp short": {"ok": 2}, "unix long": {"ok": 1}}, "notes": []}
)
COUNTS = Counts(handled=3, ended=3, exchanges=5)
COUNTERS = {"PassiveOpens": 2, "ListenOverflows": 0, "TCPAbortOnClose": 0}


def test_witnesses_that_agree_find_no_difference() -> None:
    assert compare(LEDGER, COUNTS, COUNTERS, {1: 3}, {1: 3}).agree


@pytest.mark.parametrize(
    ("counts", "counters", "accepted"),
    [
        (dataclasses.replace(COUNTS, handled=2), {}, 3),
        (dataclasses.replace(COUNTS, ended=2), {}, 3),
        (dataclasses.replace(COUNTS, exchanges=6), {}, 3),
        (COUNTS, {"PassiveOpens": 3}, 3),
        (COUNTS, {"ListenOverflows": 1}, 3),
        (COUNTS, {"TCPAbortOnClose": 1}, 3),
        (COUNTS, {}, 4),
    ],
)
def test_witnesses_that_contradict_each_other(counts: Counts, counters: dict[str, int], accepted: int) -> None:
    testimony = compare(LEDGER, counts, {**COUNTERS, **counters}, {1: accepted}, {1: 3})
    assert len(testimony.contradictions) == 1


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_zero_losses_need_attempts_and_carry_an_upper_bound() -> None:
    assert report.zero("s", "w", 0, 0, "connections", []).verdict is Verdict.BAD
    assert report.zero("s", "w", 0, 1000, "connections", []).bound == "<= 0.003"
    assert report.zero("s", "w", 0, 1000, "connections", [], sound=False).verdict is Verdict.BAD
    assert report.zero("s", "w", 1, 1000, "connections", []).verdict is Verdict.BAD
    assert not report.absent("s", "w", "option --x").passed


def test_a_harness_that_misses_known_losses_stops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def find(name: str) -> Callable[[Context], list[Row]]:
        asked.append(name)
        return lambda context: [Row(name, "", "no loss seen", 100, "", Verdict.BLIND)]

    monkeypatch.setattr(scenarios, "find", find)
    rows = command._measure(Context(tmp_path, quiet=True), ["reload"])
    assert asked == ["control"]
    assert not any(row.passed for row in rows)


def test_the_document_keeps_its_prose_and_what_was_not_measured_again(tmp_path: Path) -> None:
    document = tmp_path / "soak.md"
    text = (ROOT / "docs" / "soak.md").read_text()
    document.write_text(text)
    first, second, third = (
        report.zero(name, f"{name} | b", 0, n, "connections", [f"a detail of {n}"])
        for name, n in (("reload", 1000), ("murder", 2000), ("reload", 3000))
    )
    report.write(document, [first, second], "make soak", 600)
    report.write(document, [third], "make soak SOAK_ARGS=reload", 60)
    written = document.read_text()
    assert written.startswith(text[: text.index("<!-- measured")])
    assert written.endswith(text[text.index("<!-- end of") :])
    assert "reload / b" in written
    for n, there in ((1000, 0), (2000, 1), (3000, 1)):
        assert written.count(f"0 of {n:,} connections") == there
        assert written.count(f"a detail of {n}\n") == there
    report.write(document, [first, second], "make soak", 600)
    assert "SOAK_ARGS=reload`" not in document.read_text().partition("<!-- measured")[2]


@pytest.mark.parametrize("name", scenarios.NAMES)
def test_every_scenario_that_is_listed_exists(name: str) -> None:
    assert callable(scenarios.find(name))


# --- the command ------------------------------------------------------------------------------------------------------


def soak(*arguments: str, deadline: float = 50.0) -> subprocess.CompletedProcess[str]:
    return run_harness("soak", *arguments, deadline=deadline)


@pytest.mark.slow
def test_known_losses_are_counted_and_a_good_server_has_none() -> None:
    need("unshare")
    need_root()
    done = soak("reload", "kill-queued", "--scale", "0.0005", "--rate", "400", "--stay", "0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    control, reload, kill = (
        next(line for line in lines if line.startswith(f"{name}  ")) for name in ("control", "reload", "kill-queued")
    )
    assert control.endswith("good")
    assert " 0 of 100 reset" not in control
    assert "2 reloads of each" in reload
    assert " 0 of " in reload
    assert "2 kills" in kill
    assert " 0 of 80 queued connections" in kill
    assert done.stdout.count("the witnesses agree") == 2


@pytest.mark.slow
def test_a_bad_network_is_bad_and_nothing_is_lost_in_it() -> None:
    """This is 0.6 % of what `make soak` does."""
    need("unshare", "nsenter", "ip")
    need_root()
    done = soak("network", "--scale", "0.006", "--stay", "0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of " in done.stdout
    retransmitted = re.search(r"RetransSegs (\d+)", done.stdout)
    assert retransmitted is not None
    assert int(retransmitted[1]) > 20, "a network in which nothing is lost is not a bad one"


def test_an_unknown_scenario_is_one_line() -> None:
    done = soak("nonsense")
    assert done.returncode == 2
    assert "no scenario 'nonsense'" in done.stderr
    assert "Traceback" not in done.stderr
    assert soak("--list").stdout.count("\n") == len(scenarios.NAMES)
