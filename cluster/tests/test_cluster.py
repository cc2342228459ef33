"""The cluster in small, so that it cannot rot: losses are found in the balancer's log, and the controls show some."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.support import need, need_root, run_harness, wait_until

from cluster import __main__ as command
from cluster import haproxy, nginx, play
from cluster.cases import CASES
from cluster.losses import Event, Loss, Owner, Passage, attribute
from cluster.mark import Mark, pack, unpack
from cluster.network import Node
from cluster.play import Back, Outcome
from soak.ledger import Bin, Ledger
from soak.report import Verdict
from soak.tally import Counts

ROOT = Path(__file__).parents[2]


def test_a_mark_survives_its_way_as_a_number() -> None:
    for mark in (Mark(1, "10.77.0.1", 1), Mark(255, "255.255.255.255", 65535)):
        assert unpack(pack(mark)) == mark
        assert pack(mark) < 2**64


# --- whose a loss was -------------------------------------------------------------------------------------------------

EVENT = Event(2, 100.0, 103.0)


def loss(port: int = 4711, host: int = 0, began: float = 99.0, age: float = 2.0) -> Loss:
    return Loss("tcp short", str(Bin.EARLY_END), port, host, began, age)


def passage(host: int = 2, connected: bool = True, began: float = 99.1, port: int = 4711) -> Passage:
    return Passage(port, host, connected, 0, "SD", began)


@pytest.mark.parametrize(
    ("lost", "passages", "owner"),
    [
        (loss(), [passage()], Owner.HOST),
        (loss(host=2), [passage()], Owner.HOST),
        (loss(host=1), [passage()], Owner.OTHER),
        (loss(), [passage(host=3)], Owner.OTHER),
        (loss(), [passage(host=0, connected=False)], Owner.BALANCER),
        (loss(), [passage(connected=False)], Owner.BALANCER),
        (loss(), [], Owner.UNKNOWN),
        (loss(), [passage(port=4712)], Owner.UNKNOWN),
        # Ended before the event, or begun after it.
        (loss(began=90.0, age=9.0), [passage(began=90.0)], Owner.OTHER),
        (loss(began=104.0), [passage(began=104.0)], Owner.OTHER),
        # The port was used by another connection a while before.
        (loss(), [passage(host=3, began=97.0), passage()], Owner.HOST),
    ],
)
def test_a_loss_belongs_to_the_host_that_the_balancers_log_names(
    lost: Loss, passages: list[Passage], owner: Owner
) -> None:
    (found,) = attribute([lost], passages, [Event(1, 0.0, 50.0), EVENT])
    assert found.owner is owner
    assert str(owner) in str(found)


def test_the_log_of_haproxy_is_read() -> None:
    log = (
        "[NOTICE]   (1) : haproxy version is 2.6.12-1+deb12u4\n\n"
        "passage 40020 host2 -- 1 0 1795792695.440\n"
        "passage 40021 host3 SC -1 +2 1795792695.500\n"
        "passage 40022 <NOSRV> SC -1 0 1795792695.600\n"
    )
    assert haproxy.parse(log) == [
        Passage(40020, 2, True, 0, "--", 1795792695.440),
        Passage(40021, 3, False, 2, "SC", 1795792695.500),
        Passage(40022, 0, False, 0, "SC", 1795792695.600),
    ]


def test_what_haproxy_notes_of_a_host_is_found_in_its_log(tmp_path: Path) -> None:
    """As HAProxy 2.6 writes it."""
    balancer = haproxy.HAProxy(Node("balancer", "10.77.0.2", ()), [], tmp_path, haproxy.Setup())
    balancer.log.write_text("passage 40020 host2 -- 1 0 1795792695.440\n")
    assert balancer.noted() == "never down"
    line = (
        "Server echo/host{} is DOWN, reason: {}. 2 active and 0 backup servers left. 0 sessions active, 0 requeued, "
        "0 remaining in queue.\n"
    )
    refused = 'Layer4 connection problem, info: "Connection refused", check duration: 0ms'
    balancer.log.write_text(line.format(1, refused) + line.format(3, refused) + line.format(2, "Layer7 timeout"))
    assert balancer.noted() == "2 times down (Layer4 connection problem), 1 times down (Layer7 timeout)"


def test_the_log_of_nginx_is_read() -> None:
    log = (
        'passage 40020 200 100.500 0.500 "10.77.0.12:9000" "0.000"\n'
        'passage 40021 200 100.500 0.250 "10.77.0.11:9000, 10.77.0.13:9000" "-, 0.001"\n'
        'passage 40022 502 100.500 0.000 "10.77.0.11:9000" "-"\n'
        "2026/11/27 15:21:13 [warn] something else\n"
    )
    assert nginx.parse(log, ["10.77.0.11", "10.77.0.12", "10.77.0.13"]) == [
        Passage(40020, 2, True, 0, "200", 100.0),
        Passage(40021, 3, True, 1, "200", 100.25),
        Passage(40022, 1, False, 0, "502", 100.5),
    ]


# --- verdicts ---------------------------------------------------------------------------------------------------------


def outcome(lost: int = 0, owner: Owner = Owner.HOST, **more: int) -> Outcome:
    """100 attempts, of which `lost` were lost; all else agrees but for `more`."""
    ledger = Ledger()
    for number in range(100):
        ledger.settle(ledger.begin(), "tcp short", Bin.EARLY_END if number < lost else Bin.OK)
        ledger.exchanges += number >= lost
    counts = Counts(handled=more.get("handled", 100), ended=100 - lost, broken=0, exchanges=100 - lost)
    host = 2 if owner is Owner.HOST else 3
    passages = [passage(host, port=number) for number in range(more.get("passages", 100))]
    attributed = attribute([loss(port=number) for number in range(lost)], passages, [EVENT])
    made = Outcome(
        ledger, counts, passages, attributed, more.get("moved", 0), more.get("strangers", 0), 1, Back(10, 30), 0
    )
    made.compare("strangers" not in more)
    return made


@pytest.mark.parametrize(
    ("case", "found", "verdict"),
    [
        ("reload", outcome(), Verdict.GOOD),
        ("reload", outcome(1), Verdict.BAD),
        ("reload", outcome(moved=1), Verdict.BAD),
        ("reload", outcome(passages=99), Verdict.BAD),
        ("reload", outcome(handled=99), Verdict.BAD),
        ("kill", outcome(), Verdict.GOOD),
        ("kill", outcome(7), Verdict.GOOD),
        ("kill", outcome(1, Owner.OTHER), Verdict.BAD),
        ("control-kill", outcome(), Verdict.BAD),
        ("control-kill", outcome(1), Verdict.GOOD),
        ("control-kill", outcome(1, strangers=99), Verdict.GOOD),
        ("control-kill", outcome(1, strangers=98), Verdict.BAD),
        ("control-kill", outcome(1, Owner.OTHER), Verdict.BAD),
        ("control-refuse", outcome(), Verdict.BAD),
        ("control-refuse", outcome(1, Owner.OTHER), Verdict.GOOD),
    ],
)
def test_a_case_is_judged_by_what_it_may_lose(case: str, found: Outcome, verdict: Verdict) -> None:
    assert play.judge(case, CASES[case], found).verdict is verdict


# --- the command ------------------------------------------------------------------------------------------------------


def cluster(*arguments: str, deadline: float = 280.0) -> subprocess.CompletedProcess[str]:
    return run_harness("cluster", *arguments, deadline=deadline)


def need_cluster() -> None:
    need("haproxy", "nginx", "ip", "nsenter", "unshare", "setpriv")
    need_root()
    if not nginx.MODULE.exists():
        pytest.skip("nginx's stream module is not installed")


def verdicts(out: str) -> dict[str, str]:
    """Return the line of each case in the table."""
    return {line.split()[0]: line for line in out.splitlines() if line.split()[:1] and line.split()[0] in command.NAMES}


@pytest.mark.slow
@pytest.mark.deadline(300)
def test_a_killed_host_loses_its_own_connections_and_one_that_stops_in_order_none() -> None:
    need_cluster()
    done = cluster("kill", "drain-agent", "upgrade", "nginx-reload", "--scale", "0.05", "--rate", "50", "--stay", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    found = verdicts(done.stdout)
    assert set(found) == {"control-kill", "kill", "drain-agent", "upgrade", "nginx-reload"}
    assert all(line.endswith(" good") for line in found.values())
    lost = re.search(r" (\d+) of the host's", found["control-kill"])
    assert lost is not None
    assert int(lost[1]) > 0
    assert " 0 of " in found["drain-agent"]
    assert "0 of 0 answers" not in done.stdout


@pytest.mark.slow
@pytest.mark.deadline(180)
def test_no_process_or_device_is_left_of_a_cluster_that_is_killed(tmp_path: Path) -> None:
    need_cluster()
    before = links()
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster", "reload", "--scale", "0.05"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        # Its files are left, because nothing runs that could delete them.
        env={**os.environ, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "control-kill" in line:
                break
        members = descendants(process.pid)
        assert members
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    end(members)
    assert links() == before


def links() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def end(pids: list[int]) -> None:
    """Wait until none of the processes is there."""
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 20, "the end of all machines")


@pytest.mark.parametrize(
    ("words", "complaint"), [(["nonsense"], "no case 'nonsense'"), (["--scale", "0"], "must be more than 0")]
)
def test_wrong_options_are_one_line(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    assert caught.value.code == command.USAGE
    assert complaint in capsys.readouterr().err


def test_without_root_nothing_is_measured_and_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert command.main([]) == command.NO_CLUSTER
    assert "NOTHING WAS MEASURED" in capsys.readouterr().err
