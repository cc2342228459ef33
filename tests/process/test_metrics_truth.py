"""The numbers of --metrics agree with what clients saw and what the kernel counts, over reloads and crashes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Self

import pytest
from helpers.proc import gone
from helpers.scraping import Samples, get, metrics_port
from helpers.servers import ECHO, command, serving
from helpers.support import need, rounds, wait_until

from prefork.exporter.catalogue import CATALOGUE, Kind
from prefork.testing import Server

METRICS = ("--metrics", "127.0.0.1:0")
LINE = b"x" * 99 + b"\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(ECHO)
    return tmp_path


class Clients:
    """Clients that connect, exchange a few lines and close, in threads, with a ledger of what they saw."""

    def __init__(self, port: int, count: int = 4) -> None:
        self._port = port
        self._end = threading.Event()
        self.ledger: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            counts: Counter[str] = Counter()
            with contextlib.suppress(ConnectionError):
                self._exchange(counts)
                counts["done"] = 1
            with self._lock:
                self.ledger += counts

    def _exchange(self, counts: Counter[str]) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as sock, sock.makefile("rb") as file:
            counts["connected"] += 1
            for _ in range(5):
                sock.sendall(LINE)
                counts["sent"] += len(LINE)
                received = len(file.readline())
                counts["received"] += received
                if not received:
                    raise ConnectionResetError


class Watcher:
    """Scrapes all the time, and notes each counter that went back."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._end = threading.Event()
        self.scrapes = 0
        self.wrong: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        before: dict[tuple[str, object], float] = {}
        names = [each.full_name for each in CATALOGUE if each.kind is Kind.COUNTER]
        names += [f"{each.full_name}_bucket" for each in CATALOGUE if each.kind is Kind.HISTOGRAM]
        while not self._end.is_set():
            samples = Samples(self._port)
            now = {(name, key): value for name in names for key, value in samples.values(name).items()}
            self.wrong += [f"{key} went back" for key, value in before.items() if now.get(key, -1) < value]
            before = now
            accepted = samples.sum("prefork_connections_accepted_total")
            closed = samples.sum("prefork_connections_closed_total")
            if accepted != closed + samples.sum("prefork_connections"):
                self.wrong.append(f"accepted {accepted}, closed {closed}")
            self.scrapes += 1


def settled(server: Server) -> Samples:
    """Return the samples once no connection is open."""
    port = metrics_port(server)
    wait_until(lambda: Samples(port).sum("prefork_connections") == 0)
    return Samples(port)


@rounds(3, 8)
def test_counters_agree_with_the_ledger_over_reloads_and_crashes(folder: Path, rounds: int) -> None:
    with serving(folder, *METRICS) as server, Watcher(metrics_port(server)) as watcher:
        with Clients(server.port) as clients:
            for _ in range(rounds):
                assert command(folder, "reload").returncode == 0
        ledger, samples = clients.ledger, settled(server)
        # Nothing was lost, so all agree exactly.
        assert ledger["done"] == ledger["connected"] > 0
        assert samples.sum("prefork_connections_accepted_total") == ledger["connected"]
        assert samples.sum("prefork_connections_closed_total", reason="done") == ledger["connected"]
        assert samples.sum("prefork_connection_duration_seconds_count") == ledger["connected"]
        assert samples.sum("prefork_received_bytes_total") == ledger["sent"]
        assert samples.sum("prefork_sent_bytes_total") == ledger["received"]
        assert samples.sum("prefork_reloads_total", result="success") == rounds

        with Clients(server.port) as clients:
            for _ in range(rounds):
                victim = server.worker_pids()[0]
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda victim=victim: gone(victim) and len(server.worker_pids()) == 2)
        ledger, samples = ledger + clients.ledger, settled(server)
        # Each kill hits at most the connections of four clients, which the worker may have accepted and not counted.
        accepted = samples.sum("prefork_connections_accepted_total")
        assert ledger["connected"] - 4 * rounds <= accepted <= ledger["connected"]
        assert samples.sum("prefork_connections_closed_total") == accepted
        assert ledger["connected"] - ledger["done"] <= 4 * rounds
        assert samples.sum("prefork_connections_closed_total", reason="worker_died") <= 4 * rounds
        assert samples.sum("prefork_worker_exits_total", cause="signal") == rounds
        # The gauges of the dead are gone.
        assert len(samples.values("prefork_worker_resident_memory_bytes")) == 2
    assert watcher.scrapes > 3
    assert watcher.wrong == []


def test_each_metric_of_the_catalogue_has_its_type_and_labels(folder: Path, certs: dict[str, str]) -> None:
    options = (*METRICS, "--tls-cert", certs["cert"], "--tls-key", certs["key"], "--max-connections", "50")
    with serving(folder, *options, workers=1) as server:
        context = ssl.create_default_context(cafile=certs["ca"])
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        with context.wrap_socket(sock, server_hostname="localhost") as tls:
            tls.sendall(LINE)
            assert tls.recv(1000) == LINE
            assert Samples(metrics_port(server)).sum("prefork_connections", worker="0", state="open") == 1
        assert command(folder, "reload").returncode == 0
        samples = settled(server)
        for entry in CATALOGUE:
            family = samples.families[entry.full_name.removesuffix("_total").removesuffix("_info")]
            assert family.type == entry.kind
            assert family.samples, entry
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(entry.labels), sample
        assert samples.sum("prefork_tls_handshakes_total", result="ok", version="TLSv1.3", resumed="false") == 1
        assert samples.sum("prefork_tls_handshake_duration_seconds_count") == 1
        assert samples.sum("prefork_connections_limit") == 50
        assert samples.sum("prefork_tls_certificate_reloads_total", result="success") == 1


@pytest.mark.slow
def test_overflows_of_queues_are_those_that_the_kernel_counts(folder: Path) -> None:
    need("nstat")
    with serving(folder, *METRICS, workers=1) as server, socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        clients = [socket.socket() for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(full.getsockname())

        def counted() -> int:
            told = subprocess.run(["nstat", "-az", "TcpExtListenOverflows"], capture_output=True, text=True).stdout
            return int(told.split()[-2])

        wait_until(lambda: counted() > 0)
        for client in clients:
            client.close()
        before = counted()
        found = Samples(metrics_port(server)).sum("prefork_listen_overflows_total")
        # Other tests run in this network namespace.
        assert before <= found <= counted()
        assert get(metrics_port(server), "/healthz")[0] == 200


COUNTING = """
import prefork
lines = prefork.metrics.counter("lines", "Lines echoed.", ("kind",))
sessions = prefork.metrics.gauge("sessions", "Sessions that are open.")
seconds = prefork.metrics.histogram("line_seconds", "How long a line took.", bounds=(0.1, 1))
async def handle(stream):
    sessions.inc()
    async for line in stream:
        lines.labels("long" if len(line) > 10 else "short").inc()
        seconds.observe(0.5)
        stream.write(line)
    sessions.dec()
"""


def test_the_numbers_of_the_service_outlive_its_workers(folder: Path) -> None:
    (folder / "service.py").write_text(COUNTING)
    with serving(folder, *METRICS, workers=1) as server:
        for expected in (1, 2):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
                for line in (b"short\n", LINE):
                    sock.sendall(line)
                    assert sock.recv(1000) == line
                samples = Samples(metrics_port(server))
                for kind in ("short", "long"):
                    assert samples.sum("lines_total", worker="0", kind=kind) == expected
                assert samples.sum("sessions", worker="0") == 1
                assert samples.values("line_seconds_bucket") == {
                    (("le", "0.1"), ("worker", "0")): 0,
                    (("le", "1.0"), ("worker", "0")): 2 * expected,
                    (("le", "+Inf"), ("worker", "0")): 2 * expected,
                }
                assert samples.sum("line_seconds_sum") == expected
                (victim,) = server.worker_pids()
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda victim=victim: server.worker_pids() not in ([victim], []))
        samples = Samples(metrics_port(server))
        assert samples.sum("lines_total") == 4
        assert samples.sum("sessions") == 0
        shown = json.loads(get(metrics_port(server), "/status.json")[2])
        assert "service_metrics" not in shown
        assert {(each["name"], *each["labels"].values()): each.get("value") for each in shown["service"]} == {
            ("lines", "short"): 2,
            ("lines", "long"): 2,
            ("sessions",): 0,
            ("line_seconds",): None,
        }
        assert [(each["count"], each["sum"]) for each in shown["service"] if each["kind"] == "histogram"] == [(4, 2)]
