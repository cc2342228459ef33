"""Which sockets a program of `prefork run` gets: named by --bind or not, exclusive, allowed, and for both families."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from helpers.opened import open_folder, run_opened
from helpers.support import free_port, need_root, wait_until

from prefork.testing import Server, run_program

pytestmark = pytest.mark.deadline(120)

#: Binds each address of its arguments, HOST:PORT, by asyncio or, with a leading `raw`, by itself; tells of each
#: connection its pid, and the address that it was bound to.
PROGRAM = """
import asyncio, json, os, socket, sys

def told(name):
    return json.dumps({"pid": os.getpid(), "slot": os.environ["PREFORK_WORKER_ID"], "name": name}).encode() + b"\\n"

async def raw(host, port):
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if host == "dual":
        sock = socket.socket(socket.AF_INET6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        host = "::"
    sock.setblocking(False)
    sock.bind((host, port))
    sock.listen(5)
    loop = asyncio.get_running_loop()
    while True:
        connection, _ = await loop.sock_accept(sock)
        await loop.sock_sendall(connection, told(sock.getsockname()[:2]))
        connection.close()

async def main():
    tasks = []
    for text in sys.argv[1:]:
        kind, _, rest = text.partition("=")
        host, _, port = rest.rpartition(":")
        if kind == "raw":
            tasks.append(asyncio.create_task(raw(host, int(port))))
            continue

        async def answer(reader, writer, name=[host, int(port)]):
            writer.write(told(name))
            writer.close()

        tasks.append(await asyncio.start_server(answer, host, int(port)))
    await asyncio.gather(*(each for each in tasks if isinstance(each, asyncio.Task)))
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def ask(host: str, port: int) -> dict[str, Any]:
    with socket.create_connection((host, port), timeout=20) as sock:
        value: dict[str, Any] = json.loads(sock.makefile().readline())
    return value


def refused(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def reload(server: Server) -> None:
    count = server.stderr().count("reloaded: ")
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.stderr().count("reloaded: ") > count, 60, "the reload")


def asked_of_all(server: Server, host: str, port: int) -> None:
    seen: set[int] = set()

    def all_answered() -> bool:
        seen.add(ask(host, port)["pid"])
        return seen >= set(server.worker_pids())

    wait_until(all_answered, 30, "an answer of each worker")


def test_bind_decides_the_address_and_the_program_only_the_port(folder: Path) -> None:
    port = free_port()
    options = ("-w", "2", "--bind", f":{port}")
    with run_program("program.py", f"by=127.0.0.1:{port}", options=options, cwd=folder) as server:
        asked_of_all(server, "127.0.0.1", port)
        asked_of_all(server, "::1", port)
        reload(server)
        asked_of_all(server, "::1", port)
        assert "connections are refused" not in server.stderr()


def test_connections_are_refused_where_the_program_does_not_listen(folder: Path) -> None:
    port = free_port()
    options = ("-w", "2", "--bind", f":{port}")
    with run_program("program.py", f"raw=0.0.0.0:{port}", options=options, cwd=folder) as server:
        asked_of_all(server, "127.0.0.1", port)
        wait_until(lambda: f"[::]:{port}: the program does not listen there" in server.stderr())
        assert refused("::1", port)
        reload(server)
        assert refused("::1", port)
        assert ask("127.0.0.1", port)["pid"] in server.worker_pids()


def test_an_address_of_bind_that_no_worker_listens_on_fails_the_start_and_is_named(folder: Path) -> None:
    port = free_port()
    options = ("-w", "1", "--boot-timeout", "1.5", "--bind", f"127.0.0.1:{port}")
    with run_program("program.py", "by=127.0.0.1:0", options=options, cwd=folder, wait_ready=False) as server:
        assert server.wait(30) == 3
        assert f"(--boot-timeout): it does not listen on 127.0.0.1:{port}" in server.stderr()


def test_a_socket_for_both_families_stays_one(folder: Path) -> None:
    port = free_port()
    with run_program("program.py", f"raw=dual:{port}", options=("-w", "2"), cwd=folder) as server:
        asked_of_all(server, "127.0.0.1", port)
        asked_of_all(server, "::1", port)
    options = ("-w", "1", "--bind", f":{port}")
    with run_program("program.py", f"raw=dual:{port}", options=options, cwd=folder, wait_ready=False) as server:
        assert server.wait(30) != 0
        assert f"the program wants [::]:{port} for both families, and it is held for IPv6 only" in server.stderr()


@pytest.mark.parametrize("kind", ["raw", "by"])
def test_a_second_bind_of_an_address_fails_as_it_would_without_prefork(kind: str, folder: Path) -> None:
    port = free_port()
    words = ("program.py", f"by=127.0.0.1:{port}", f"{kind}=127.0.0.1:{port}")
    with run_program(*words, options=("-w", "1"), cwd=folder, wait_ready=False) as server:
        assert server.wait(30) == 3
        assert "Address already in use" in server.stderr()


@pytest.mark.parametrize("kind", ["raw", "by"])
def test_an_exclusive_address_is_the_first_workers_and_then_its_successors(kind: str, folder: Path) -> None:
    port, own = free_port(), free_port()
    words = ("program.py", f"by=127.0.0.1:{port}", f"{kind}=127.0.0.1:{own}")
    options = ("-w", "3", "--exclusive", f"127.0.0.1:{own}")
    with run_program(*words, options=options, cwd=folder) as server:
        for _ in range(2):
            asked_of_all(server, "127.0.0.1", port)
            answers = [ask("127.0.0.1", own) for _ in range(12)]
            assert {each["slot"] for each in answers} == {"0"}
            assert answers[0]["name"] == ["127.0.0.1", own]
            first = answers[0]["pid"]
            reload(server)
            wait_until(lambda first=first: first not in server.worker_pids(), 30)
        os.kill(ask("127.0.0.1", own)["pid"], signal.SIGKILL)
        assert ask("127.0.0.1", own)["slot"] == "0"


def test_metrics_of_workers_have_a_fresh_directory_for_each_start(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "program.py").write_text("""
import asyncio, os
async def answer(reader, writer):
    writer.write(os.environ["PROMETHEUS_MULTIPROC_DIR"].encode())
    writer.close()
async def main():
    open(os.path.join(os.environ["PROMETHEUS_MULTIPROC_DIR"], f"{os.getpid()}.db"), "w").close()
    await (await asyncio.start_server(answer, "127.0.0.1", 0)).serve_forever()
asyncio.run(main())
""")
    seen = set()
    for _ in range(2):
        variables = {"PROMETHEUS_MULTIPROC_DIR": "metrics"}
        with run_program("program.py", options=("-w", "2"), cwd=tmp_path, env=variables) as server:
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
                path = Path(sock.makefile().read())
            assert path.parent == tmp_path / "metrics"
            assert len(list(path.iterdir())) == 2
            seen.add(path)
            assert server.stop() == 0
        assert list((tmp_path / "metrics").iterdir()) == []
    assert len(seen) == 2
    variables = {"PROMETHEUS_MULTIPROC_DIR": "none"}
    with run_program("program.py", cwd=tmp_path, env=variables, wait_ready=False) as server:
        assert server.wait(30) == 2
        assert "PROMETHEUS_MULTIPROC_DIR none: no such file or directory" in server.stderr()


ALLOWED = """
import os, socket
from pathlib import Path
from prefork.testing import run_program
Path("program.py").write_text(PROGRAM)
port = ["by=127.0.0.1:81"]
with run_program("program.py", *port, options=("-w", "1", "--user", "65534"), cwd=".", wait_ready=False) as server:
    code, log = server.wait(30), server.stderr()
assert code == 3, (code, log)
assert "bind 127.0.0.1:81: permission denied" in log, log
options = ("-w", "2", "--user", "65534", "--allow-bind", "127.0.0.1:81")
with run_program("program.py", *port, options=options, cwd=".") as server:
    with socket.create_connection(("127.0.0.1", 81)) as sock:
        assert b"127.0.0.1" in sock.makefile("rb").readline()
    assert server.stop() == 0
# What the user itself might bind, it is given with its own rights.
os.mkdir("private", 0o700)
os.mkdir("open", 0o777)
os.chmod("open", 0o777)
Path("unix.py").write_text('''
import asyncio, sys
async def main():
    server = await asyncio.start_unix_server(lambda reader, writer: writer.close(), sys.argv[1])
    await server.serve_forever()
asyncio.run(main())
''')
with run_program("unix.py", "open/a.sock", options=("-w", "2", "--user", "65534"), cwd=".") as server:
    assert os.stat("open/a.sock").st_uid == 65534
    assert server.stop() == 0
assert not os.path.exists("open/a.sock")
options = ("-w", "1", "--user", "65534")
with run_program("unix.py", "private/a.sock", options=options, cwd=".", wait_ready=False) as server:
    code, log = server.wait(30), server.stderr()
assert code == 3, (code, log)
assert "ermission denied" in log, log
print("done")
"""


def test_a_program_binds_with_the_rights_of_its_user_unless_an_address_is_allowed() -> None:
    need_root()
    with open_folder() as place:
        assert "done" in run_opened(f"PROGRAM = {PROGRAM!r}\n{ALLOWED}", place)
