"""What `prefork serve` binds, what it says about it, what it takes away again, and the options that go with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.support import free_port, need, need_root

from prefork.testing import run_server

SERVICE = """
async def handle(stream):
    async for line in stream:
        stream.write(line)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(SERVICE)
    return tmp_path


def fails(folder: Path, *options: str, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    """The exit status, and the last line of what was said."""
    command = [*prefix, sys.executable, "-m", "prefork", "serve", "app:handle", "-w", "1", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


def test_one_address_may_be_a_text(folder: Path) -> None:
    with run_server("app:handle", "-w", "1", bind="127.0.0.1:0", cwd=folder) as server:
        assert server.port > 0


def test_two_free_ports_are_two(folder: Path) -> None:
    with run_server("app:handle", "-w", "1", bind=["127.0.0.1:0", "127.0.0.1:0"], cwd=folder) as server:
        ports = {address.rpartition(":")[2] for address in server.addresses}
        assert len(ports) == 2
        for port in ports:
            socket.create_connection(("127.0.0.1", int(port)), timeout=10).close()


def test_addresses_that_include_each_other_are_told_apart_from_a_stranger(folder: Path) -> None:
    port = free_port()
    code, said = fails(folder, "--bind", f":{port}", "--bind", f"127.0.0.1:{port}")
    assert code == 4
    assert said == f"prefork: bind 127.0.0.1:{port}: address already in use (another --bind of this command has it)"


def test_an_unknown_host_exits_with_4(folder: Path) -> None:
    code, said = fails(folder, "--bind", "no-such-host.invalid:9000")
    assert code == 4
    assert said.startswith("prefork: bind no-such-host.invalid:9000: cannot assign requested address (")


def test_an_address_of_another_machine_exits_with_4(folder: Path) -> None:
    code, said = fails(folder, "--bind", "192.0.2.1:9000")
    assert code == 4
    assert "bind 192.0.2.1:9000: cannot assign requested address (no interface of this machine has that" in said


def test_only_its_own_socket_file_is_removed(folder: Path) -> None:
    path = folder / "socket"
    with run_server("app:handle", "-w", "1", bind=[f"unix:{path}"], cwd=folder) as server:
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
            successor.listen()
            assert server.stop() == 0
            assert path.exists()


def test_a_socket_file_is_removed_when_the_service_cannot_be_loaded(folder: Path) -> None:
    (folder / "app.py").write_text("broken = True")
    code, _ = fails(folder, "--bind", f"unix:{folder}/socket")
    assert code == 3
    assert not (folder / "socket").exists()


def test_the_kernels_cap_of_the_backlog_is_logged_once(folder: Path) -> None:
    """In a network namespace, where the cap can be set."""
    need("unshare", "sysctl", "ip", "ss")
    need_root()
    script = 'ip link set lo up; sysctl -qw net.core.somaxconn=77; exec "$@"'
    prefix = ("unshare", "-n", "sh", "-c", script, "sh")
    for backlog, warnings in (("77", 0), ("78", 1)):
        with run_server("app:handle", "-w", "2", "--backlog", backlog, cwd=folder, prefix=prefix) as server:
            assert server.stderr().count("the kernel caps it at 77 (raise net.core.somaxconn)") == warnings
            listing = subprocess.check_output(["nsenter", "-n", "-t", str(server.pid), "ss", "-ltnH"], text=True)
            assert listing.split()[2] == "77"


def test_readiness_is_written_to_a_descriptor_that_no_worker_keeps(folder: Path) -> None:
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "prefork", "serve", "app:handle", "-w", "2", "--bind", "127.0.0.1:0"]
        + ["--ready-fd", str(writer)],
        cwd=folder,
        stderr=subprocess.DEVNULL,
        pass_fds=(writer,),
    ) as process:
        os.close(writer)
        try:
            # The end of file means that no process has it open any more.
            with os.fdopen(reader) as file:
                assert file.read() == "READY\n"
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_an_unusable_ready_fd_is_refused(folder: Path) -> None:
    assert fails(folder, "--ready-fd", "77") == (
        2,
        "prefork: --ready-fd 77: bad file descriptor (the parent has to pass it on)",
    )
    assert fails(folder, "--ready-fd", "8", prefix=("sh", "-c", 'exec "$@" 8</dev/null', "sh")) == (
        2,
        "prefork: --ready-fd 8: is open for reading only",
    )


def test_uvloop_serves_and_drains(folder: Path) -> None:
    pytest.importorskip("uvloop")
    with run_server("app:handle", "-w", "2", "--loop", "uvloop", cwd=folder) as server:
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
                sock.sendall(b"hello\n")
                assert sock.makefile("rb").readline() == b"hello\n"
        assert server.stop() == 0
        assert server.stderr().count(" closed, none aborted") == 2
