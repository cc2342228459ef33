"""`task_id()` and `current_worker()`: the public answer to "which worker am I"."""

from __future__ import annotations

import socket
from pathlib import Path

from helpers.servers import command, ready, serving
from helpers.support import run_script

from prefork.testing import Server

SERVICE = """
import prefork

AT_IMPORT = prefork.task_id(), prefork.current_worker()

async def handle(stream):
    assert AT_IMPORT == (prefork.task_id(), prefork.current_worker())
    worker = prefork.current_worker()
    await stream.send(f"{prefork.task_id()} {worker.slot} {worker.generation}\\n".encode())
"""


def answers(server: Server) -> set[tuple[int, int, int]]:
    found = set()
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
            task, slot, generation = map(int, sock.makefile("rb").readline().split())
        found.add((task, slot, generation))
    return found


def test_a_worker_of_serve_knows_its_slot_and_its_generation(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    with serving(tmp_path, workers=2) as server:
        assert answers(server) == {(0, 0, 0), (1, 1, 0)}
        assert command(tmp_path, "reload").returncode == 0
        assert answers(server) == {(0, 0, 1), (1, 1, 1)}
        assert {worker["generation"] for worker in ready(tmp_path)} == {1}


def test_a_process_that_is_no_worker_has_neither() -> None:
    done = run_script("import prefork\nprint(prefork.task_id(), prefork.current_worker())")
    assert done.stdout == "None None\n", done.stderr


def test_a_service_that_forks_its_own_workers_is_told_that_it_is_one(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text("import prefork\nprefork.fork_processes(2)\n")
    done = run_script("import prefork\nprefork.serve('service:handle', bind=':0')", cwd=tmp_path)
    assert "fork_processes: this process is already worker" in done.stderr
    assert done.returncode == 3
