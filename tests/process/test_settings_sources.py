"""Settings from the command line, the environment and a file; and what a reload makes of a file that has changed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.support import need_root, run_script, wait_until

from prefork.cli.options import OPTIONS
from prefork.cli.sources import Sources
from prefork.config import Limits, Settings
from prefork.errors import ConfigError
from prefork.testing import Server, run_server

SERVICE = """
import os

async def handle(stream):
    async for line in stream:
        stream.write(f"{os.getpid()} {os.umask(0o77)}\\n".encode())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_setting_has_an_option_or_is_for_python_only() -> None:
    limits = {each.name for each in dataclasses.fields(Limits) if each.metadata["command"]}
    fields = {each.name for each in dataclasses.fields(Settings)} - {"tls", "limits", "program"}
    assert {option.field for option in OPTIONS} == fields | limits | {"tls_cert", "tls_key"}


def settings(given: Mapping[str, list[str]] | None = None, **environment: str) -> Settings:
    return Sources(given or {}, environment).settings()


def test_the_command_line_wins_then_the_environment_then_the_file(folder: Path) -> None:
    (folder / "prefork.toml").write_text("workers = 1\nbacklog = 10\ndrain_timeout = 1.5\nreuse_port = true\n")
    found = settings({"workers": ["3"]}, PREFORK_WORKERS="2", PREFORK_BACKLOG="20")
    assert (found.workers, found.backlog, found.drain_timeout, found.reuse_port) == (3, 20, 1.5, True)


def test_every_option_can_stand_in_a_file(folder: Path) -> None:
    (folder / "other.toml").write_text(
        """
        bind = [":0", "unix:socket,mode=660"]
        workers = 2
        backlog = 5
        tls_cert = "cert.pem"
        tls_key = ["key.pem"]
        alpn = ["h2", "http/1.1"]
        handshake_timeout = 1
        write_timeout = 2.5
        max_connections_served = 100
        max_worker_age = "off"
        max_worker_rss = "512M"
        read_limit = "32K"
        umask = "027"
        log_format = "json"
        """
    )
    found = settings({"config": ["other.toml"]})
    assert [str(address) for address in found.bind] == [":0", "unix:socket,mode=660"]
    assert (found.tls[0].cert, found.tls[0].key) == ("cert.pem", "key.pem")
    assert found.alpn == ("h2", "http/1.1")
    assert (found.limits.handshake_timeout, found.limits.write_timeout) == (1, 2.5)
    assert found.limits.read_limit == 32 * 1024
    assert (found.max_connections_served, found.max_worker_age, found.max_worker_rss) == (100, None, 512 * 2**20)
    assert (found.umask, found.log_format) == (0o027, "json")
    assert settings({}, PREFORK_CONFIG="other.toml").workers == 2
    assert [str(address) for address in settings({}, PREFORK_BIND=":1 :2").bind] == [":1", ":2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers = -1", "--workers -1: must be 0 or more (0: one per usable CPU) (in prefork.toml)"),
        ("workers = 1.5", "--workers 1.5: must be a whole number (in prefork.toml)"),
        ("worker = 1", "--config prefork.toml: there is no option worker, did you mean workers?"),
        ("port = 1", "--config prefork.toml: there is no option port, did you mean --bind :PORT?"),
        (
            "[prefork]\nworkers = 1",
            "--config prefork.toml: there is no option prefork: options stand at the top level, without [prefork]",
        ),
        ("workers =", "--config prefork.toml: not a TOML file: "),
        ("[workers]\nn = 1", "--config prefork.toml: workers must be text, a number, true or false"),
        ("bind = [[1]]", "--config prefork.toml: bind must be text, or a list of text"),
        ("alpn = [[1]]", "--config prefork.toml: alpn must be text, or a list of text"),
        ("bind = ':x'", "the port must be a number from 0 to 65535 (in prefork.toml)"),
        ("umask = 27", '--config prefork.toml: umask must be text, such as "027"'),
        ("reuse_port = 'maybe'", "--reuse-port maybe: must be true or false (in prefork.toml)"),
        (
            "tls_cert = 'cert.pem'",
            "--tls-cert cert.pem: its --tls-key is missing (it may be the same file) (in prefork",
        ),
        (
            "max_worker_rss = '12X'",
            "--max-worker-rss 12X: must be a number of bytes, such as 536870912, 512M or 512MiB",
        ),
        ("max_worker_rss = 1000", "--max-worker-rss 1000: must be 1048576 or more bytes"),
        ("workers = 1\n\x1b[31m = 2", "--config prefork.toml: not a TOML file: "),
    ],
)
def test_an_error_in_a_file_names_its_location(folder: Path, text: str, message: str) -> None:
    (folder / "prefork.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        settings()
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_error_in_the_environment_names_the_variable(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"--backlog many: must be a whole number \(in PREFORK_BACKLOG\)"):
        settings(PREFORK_BACKLOG="many")
    # Others may use the prefix for what they like.
    assert settings(PREFORK_SOMETHING="else") == Settings()


def test_variables_that_name_no_option_are_told_but_for_those_of_prefork_itself_and_of_kubernetes() -> None:
    variables = {
        "PREFORK_WORKRS": "4",
        "PREFORK_PORT": "9000",
        "PREFORK_SOMETHING": "else",
        "PREFORK_BACKLOG": "5",
        **dict.fromkeys(("PREFORK_CONFIG", "PREFORK_CHDIR", "PREFORK_PURE", "PREFORK_WORKER_ID"), "1"),
        "PREFORK_SERVICE_HOST": "10.0.0.1",
        "PREFORK_PORT_9000_TCP_ADDR": "10.0.0.1",
    }
    told = [("PREFORK_PORT", ", did you mean --bind :PORT?"), ("PREFORK_SOMETHING", "")]
    assert list(Sources({}, variables).unknown_variables) == [
        *told,
        ("PREFORK_WORKRS", ", did you mean PREFORK_WORKERS?"),
    ]
    assert Sources({}, {"PREFORK_PORT": "tcp://10.0.0.1:9000"}).unknown_variables == ()
    assert len(Sources({}, {f"PREFORK_X{number}": "" for number in range(50)}).unknown_variables) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("", {"PREFORK_USER": "nosuch"}, "--user nosuch: there is no such user (in PREFORK_USER)"),
        ("user = true", {}, "--user true: there is no such user (in prefork.toml)"),
        (
            "",
            {"PREFORK_TLS_CERT": "nosuch", "PREFORK_TLS_KEY": "nosuch"},
            "--tls-cert nosuch: no such file or directory (in PREFORK_TLS_CERT)",
        ),
        ("ready_fd = 799", {}, "--ready-fd 799: bad file descriptor (the parent has to pass it on) (in prefork.toml)"),
        ("pidfile = '/tmp'", {}, "--pidfile /tmp: is a directory (in prefork.toml)"),
    ],
)
def test_an_error_that_is_found_at_the_start_names_its_location(
    folder: Path, text: str, environment: dict[str, str], message: str
) -> None:
    (folder / "prefork.toml").write_text(text)
    script = "import sys\nfrom prefork.cli.main import main\nsys.exit(main())"
    for word in ("serve",) if "pidfile" in text else ("check", "serve"):
        done = run_script(script, word, "service:handle", "--bind", "127.0.0.1:0", env=environment, cwd=folder)
        assert (done.returncode, done.stderr) == (2, f"prefork: {message}\n")


@pytest.mark.parametrize(("name", "reason"), [("gone.toml", "no such file"), (".", "is a directory")])
def test_an_unreadable_file_is_one_line(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"--config {re.escape(name)}: {reason}"):
        settings({"config": [name]})


def test_the_commands_find_their_server_by_the_file(folder: Path) -> None:
    (folder / "prefork.toml").write_text(f'control = "{folder}/control"\nworkers = 1\n')
    with run_server("service:handle", "--control", f"{folder}/control", cwd=folder) as server:
        done = subprocess.run(
            [sys.executable, "-m", "prefork", "status"], capture_output=True, text=True, timeout=30, cwd=folder
        )
        assert f"supervisor {server.pid}" in done.stdout


def test_the_commands_report_a_file_that_is_wrong_if_they_find_no_server(folder: Path) -> None:
    script = "import sys\nfrom prefork.cli.main import main\nsys.exit(main())"
    env = {"XDG_RUNTIME_DIR": str(folder)}
    (folder / "prefork.toml").write_text("wokers = 2\n")
    done = run_script(script, "status", env=env, cwd=folder)
    wrong = "--config prefork.toml: there is no option wokers, did you mean workers?"
    assert (done.returncode, done.stderr) == (2, f"prefork: {wrong}\n")
    (folder / "prefork.toml").unlink()
    for variables in (env, {**env, "PREFORK_CONFIG": "gone.toml"}):
        assert "no running prefork found" in run_script(script, "status", env=variables, cwd=folder).stderr


# --- reload -----------------------------------------------------------------------------------------------------------


def reload(server: Server, outcome: str = "reloaded: ") -> None:
    before = server.stderr().count(outcome)
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.stderr().count(outcome) > before, what=f"{outcome}\n{server.stderr()}")


def ask(where: Any, family: int = socket.AF_INET) -> list[int]:
    with socket.socket(family) as sock:
        sock.settimeout(10)
        sock.connect(where)
        sock.sendall(b"hello\n")
        return [int(word) for word in sock.makefile("rb").readline().split()]


def refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


class Configured:
    """A server whose settings stand in a file, with a control socket to ask it by."""

    def __init__(self, folder: Path, **values: Any) -> None:
        self.folder = folder
        self.write(**values)

    def write(self, **values: Any) -> None:
        """JSON's words for numbers, texts and lists are TOML's."""
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]
        (self.folder / "prefork.toml").write_text("".join(lines))

    def run(self, *options: str) -> Any:
        control = ["--control", str(self.folder / "control")]
        return run_server("service:handle", *control, *options, bind=[], cwd=self.folder)

    def listeners(self) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "prefork", "status", "--json", "--control", str(self.folder / "control")],
            capture_output=True,
            text=True,
            timeout=30,
            cwd=self.folder,
        )
        listeners: list[str] = json.loads(done.stdout)["listeners"]
        return listeners


def test_a_reload_adds_and_removes_listeners_and_keeps_the_rest(folder: Path) -> None:
    path = folder / "socket"
    configured = Configured(folder, bind=["127.0.0.1:0", f"unix:{path}"], workers=2)
    with configured.run() as server:
        first = server.port
        inode = path.stat().st_ino
        with socket.create_connection(("127.0.0.1", first), timeout=10) as sock:
            sock.sendall(b"stay\n")
            worker = int(sock.recv(100).split()[0])
            configured.write(bind=["127.0.0.1:0", "localhost:0", f"unix:{path},mode=666"], workers=2)
            reload(server)
            listeners = configured.listeners()
            assert f"127.0.0.1:{first} (tcp)" in listeners
            assert path.stat().st_ino == inode
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            (second,) = {int(text.split()[0].rpartition(":")[2]) for text in listeners if text.endswith("(tcp)")} - {
                first
            }
            for port in (first, second):
                assert ask(("127.0.0.1", port))[0] != worker
            configured.write(bind=["localhost:0"], workers=2)
            reload(server)
            assert ask(("127.0.0.1", second))
            # Also while an older worker still has a connection of it. The log line precedes the close by a moment.
            wait_until(lambda: refused(first))
            # One goes after the other.
            wait_until(lambda: not path.exists())
            sock.sendall(b"still\n")
            assert int(sock.recv(100).split()[0]) == worker
        assert server.stop() == 0


def test_a_reload_with_an_address_that_cannot_be_bound_changes_nothing(folder: Path) -> None:
    configured = Configured(folder, bind=["127.0.0.1:0"], workers=1)
    with configured.run() as server, socket.create_server(("127.0.0.1", 0)) as taken:
        workers = server.worker_pids()
        port = taken.getsockname()[1]
        configured.write(bind=["127.0.0.1:0", f"unix:{folder}/new", f"127.0.0.1:{port}"], workers=1)
        reload(server, f"not reloading (SIGHUP): bind 127.0.0.1:{port}: address already in use")
        assert server.worker_pids() == workers
        assert not (folder / "new").exists()
        assert configured.listeners() == [f"127.0.0.1:{server.port} (tcp)"]
        assert ask(("127.0.0.1", server.port))


def test_a_failed_reload_closes_its_new_listeners(folder: Path) -> None:
    configured = Configured(folder, bind=["127.0.0.1:0"], workers=2)
    with configured.run() as server:
        (folder / "service.py").write_text("raise RuntimeError")
        configured.write(bind=["127.0.0.1:0", f"unix:{folder}/new"], workers=2)
        reload(server, "reload failed, the running workers stay")
        wait_until(lambda: not (folder / "new").exists())
        (folder / "service.py").write_text(SERVICE)
        reload(server)
        assert ask(str(folder / "new"), socket.AF_UNIX)
        assert ask(("127.0.0.1", server.port))


def test_a_reload_names_the_file_of_a_certificate_that_is_missing(folder: Path) -> None:
    configured = Configured(folder, bind=["127.0.0.1:0"], workers=1)
    with configured.run() as server:
        configured.write(bind=["127.0.0.1:0"], workers=1, tls_cert="no.pem", tls_key="no.pem")
        reload(server, "--tls-cert no.pem: no such file or directory (in prefork.toml)")


def test_a_reload_applies_the_number_of_workers(folder: Path) -> None:
    configured = Configured(folder, bind=["127.0.0.1:0"], workers=1)
    with configured.run() as server:
        configured.write(bind=["127.0.0.1:0"], workers=3)
        reload(server)
        wait_until(lambda: len(server.worker_pids()) == 3)
        # One that was scaled to stays, if the file says nothing new.
        server.signal(signal.SIGTTIN)
        wait_until(lambda: len(server.worker_pids()) == 4)
        reload(server)
        wait_until(lambda: len(server.worker_pids()) == 4)
        configured.write(bind=["127.0.0.1:0"], workers=2)
        reload(server)
        wait_until(lambda: len(server.worker_pids()) == 2)


def test_a_reload_switches_tls_on_and_off(folder: Path, certs: dict[str, str]) -> None:
    configured = Configured(folder, bind=["127.0.0.1:0"], workers=1)
    with configured.run() as server:
        assert ask(("127.0.0.1", server.port))
        configured.write(bind=["127.0.0.1:0"], workers=1, tls_cert=certs["cert"], tls_key=certs["key"])
        reload(server)
        assert configured.listeners() == [f"127.0.0.1:{server.port} (tcp, tls)"]
        context = ssl.create_default_context(cafile=certs["ca"])
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            tls = context.wrap_socket(sock, server_hostname="localhost")
            tls.sendall(b"hello\n")
            assert re.fullmatch(rb"\d+ \d+\n", tls.recv(100))
            tls.close()
        configured.write(bind=["127.0.0.1:0"], workers=1)
        reload(server)
        assert ask(("127.0.0.1", server.port))


def test_a_reload_applies_worker_settings_to_new_workers(folder: Path) -> None:
    need_root()
    configured = Configured(folder, bind=["127.0.0.1:0"], workers=1, umask="022")
    with configured.run() as server:
        assert ask(("127.0.0.1", server.port))[1] == 0o022
        configured.write(bind=["127.0.0.1:0"], workers=1, umask="027", log_level="debug", drain_timeout=1)
        reload(server)
        assert ask(("127.0.0.1", server.port))[1] == 0o027


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"reuse_port": True}, "--reuse-port"),
        ({"pidfile": "other"}, "--pidfile"),
        ({"user": "nobody"}, "--user"),
        ({"group": "nogroup"}, "--group"),
    ],
)
def test_a_setting_that_needs_a_restart_is_refused_with_the_cure(
    folder: Path, values: dict[str, Any], option: str
) -> None:
    configured = Configured(folder, bind=["127.0.0.1:0"], workers=1)
    with configured.run() as server:
        workers = server.worker_pids()
        configured.write(bind=["127.0.0.1:0"], workers=1, **values)
        reload(server, f"not reloading (SIGHUP): {option}: cannot be changed by a reload")
        assert server.worker_pids() == workers


def test_a_reload_follows_a_symbolic_link_to_the_new_release(folder: Path) -> None:
    """As deployments have it: the link is set to the next folder, and a reload goes there."""
    for version in ("one", "two"):
        (folder / version).mkdir()
        (folder / version / "app.py").write_text(f"async def handle(s): await s.send(b'{version}\\n')")
    link = folder / "current"
    link.symlink_to(folder / "one")
    with run_server("app:handle", "-w", "1", cwd=link, env={"PWD": str(link)}) as server:
        link.unlink()
        link.symlink_to(folder / "two")
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            assert sock.makefile().readline() == "one\n"
        reload(server)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            assert sock.makefile().readline() == "two\n"
        assert os.readlink(f"/proc/{server.pid}/cwd") == str(folder / "two")
