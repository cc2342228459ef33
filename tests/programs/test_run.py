"""Each server of the catalogue, unchanged, under `prefork run` with two workers: served, reloaded, killed, stopped."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from helpers.support import free_port, wait_until

from prefork.testing import Server, run_program
from programs.catalogue import PROGRAMS, SERVERS, Program
from programs.clients import HOST, HTTP
from programs.load import CLIENTS, loading
from programs.running import PORTS, QUICK, START, each_of, forgiving, need_installed, parametrized

#: Seconds that a stop waits for connections, far below the deadline of a test.
DRAIN = 5
#: Seconds for a machine on which other tests run, beyond what is due.
SPARE = 20

pytestmark = pytest.mark.deadline(240)


@contextlib.contextmanager
def run(program: Program, *options: str) -> Iterator[tuple[Server, int]]:
    """Run the program in two workers, on a port that only the program names; yield the server and the port."""
    need_installed(program)
    times = ("--drain-timeout", str(DRAIN), "--reload-drain-timeout", str(DRAIN), "--stop-timeout", "3")
    options = ("-w", "2", *times, *options)
    with contextlib.ExitStack() as stack:
        for _ in range(PORTS):
            port = free_port()
            try:
                server = stack.enter_context(
                    run_program(*program.arguments(port), options=options, cwd=SERVERS, timeout=START)
                )
            except RuntimeError as exc:
                if "in use" not in str(exc):
                    raise
            else:
                break
        else:
            raise AssertionError(f"{PORTS} ports were taken by others")
        yield server, port


def reload(server: Server, all_end: bool = True) -> None:
    """Reload, and wait until every worker from before has ended, unless some may go on."""
    before = set(server.worker_pids())
    count = server.stderr().count("reloaded: ")
    server.signal(signal.SIGHUP)
    wait_until(
        lambda: server.stderr().count("reloaded: ") > count or "reload failed" in server.stderr(),
        2 * START,
        "the reload",
    )
    assert "reload failed" not in server.stderr(), server.stderr()
    if all_end:
        wait_until(lambda: not before & set(server.worker_pids()), DRAIN + SPARE, "the end of the old workers")


@contextlib.contextmanager
def holding(program: Program, port: int) -> Iterator[Callable[[], int]]:
    """Hold a connection within the block, whose worker may end before it."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(program.client.hold(port))
        with contextlib.suppress(Exception):  # each library raises something else for a connection that is gone
            stack.close()


@contextlib.contextmanager
def holding_each(program: Program, port: int, workers: set[int]) -> Iterator[dict[int, Callable[[], int]]]:
    """Hold a connection to each of the workers within the block."""
    held: dict[int, Callable[[], int]] = {}
    end = time.monotonic() + SPARE
    with contextlib.ExitStack() as stack:
        while set(held) != workers:
            assert time.monotonic() < end, f"{sorted(held)} have connections, of {sorted(workers)}"
            manager = holding(program, port)
            transact = manager.__enter__()
            if (pid := transact()) in held:
                manager.__exit__(None, None, None)
            else:
                stack.push(manager)
                held[pid] = transact
        yield held


@parametrized
def test_every_worker_serves(program: Program) -> None:
    with run(program) as (server, port):
        workers = set(server.worker_pids())
        assert len(workers) == 2
        with loading(program.client, port) as ledger:
            ledger.wait_for(workers)
        assert ledger.failures == [], ledger.report()
        assert ledger.pids == workers


@parametrized
def test_a_reload_under_load_loses_nothing(program: Program) -> None:
    with run(program) as (server, port), loading(program.client, port) as ledger:
        for _ in range(2):
            old = set(server.worker_pids())
            ledger.wait_for(old)
            reload(server)
            new = set(server.worker_pids())
            assert len(new) == 2
            assert not old & new
            ledger.wait_for(new)
        assert ledger.failures == [], f"{ledger.report()}\n{server.stderr()}"


@forgiving
@parametrized
def test_a_killed_worker_costs_its_own_connections_and_is_replaced(program: Program) -> None:
    with run(program) as (server, port), contextlib.ExitStack() as stack:
        workers = set(server.worker_pids())
        with loading(program.client, port) as ledger:
            held = stack.enter_context(holding_each(program, port, workers))
            spared, killed = workers
            os.kill(killed, signal.SIGKILL)

            def replaced() -> bool:
                # Asked again and again, because some servers close a connection that is idle for 5 s.
                assert held[spared]() == spared
                return len(set(server.worker_pids()) - {killed}) == 2

            wait_until(replaced, START, "the next worker")
            (successor,) = set(server.worker_pids()) - workers
            ledger.wait_for({successor})
        # Each client may have had one transaction in that worker when it was killed.
        assert len(ledger.failures) <= CLIENTS, f"{ledger.report()}\n{server.stderr()}"


@each_of(each for each in PROGRAMS if not each.handles_term)
def test_a_kept_connection_outlives_a_reload(program: Program) -> None:
    with run(program) as (server, port), holding(program, port) as transact:
        pid = transact()
        reload(server, all_end=False)
        assert transact() == pid
        assert program.client.request(port) != pid


@each_of(each for each in PROGRAMS if each.client is HTTP)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_request_under_way_is_answered_before_its_worker_ends(program: Program, number: int) -> None:
    with run(program) as (server, port):
        workers = server.worker_pids()
        connection = http.client.HTTPConnection(HOST, port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/slow")
            # Later requests are answered by now, so this one is with its worker.
            assert {program.client.request(port) for _ in range(10)} <= set(workers)
            server.signal(number)
            with connection.getresponse() as response:
                assert int(response.read()) in workers


@pytest.mark.slow
@parametrized
def test_it_stops_within_the_drain_timeout_though_a_connection_is_idle(program: Program) -> None:
    with run(program, "--drain-timeout", "2") as (server, port), holding(program, port) as transact:
        pid = transact()
        assert pid in server.worker_pids()
        began = time.monotonic()
        assert server.stop(timeout=DRAIN + SPARE) == 0, server.stderr()
        assert time.monotonic() - began < DRAIN + SPARE
        with pytest.raises(ConnectionRefusedError), socket.create_connection((HOST, port), timeout=5):
            pass


plain = each_of(each for each in PROGRAMS if each.name in QUICK)


@plain
def test_an_address_may_be_named_by_bind_as_well(program: Program) -> None:
    port = free_port()
    options = ("-w", "2", "--bind", f"{HOST}:{port}")
    with run_program(*program.arguments(port), options=options, cwd=SERVERS, timeout=START) as server:
        assert server.addresses == [f"{HOST}:{port}"]
        assert program.client.request(port) in server.worker_pids()
        assert server.stop() == 0


@plain
def test_port_0_is_the_same_free_port_in_every_worker_and_after_a_reload(program: Program) -> None:
    with run_program(*program.arguments(0), options=("-w", "2"), cwd=SERVERS, timeout=START) as server:
        port = server.port
        assert server.addresses == [f"{HOST}:{port}"]
        with loading(program.client, port) as ledger:
            ledger.wait_for(set(server.worker_pids()))
            reload(server)
            ledger.wait_for(set(server.worker_pids()))
        assert ledger.failures == [], ledger.report()
        assert server.addresses == [f"{HOST}:{port}"]
