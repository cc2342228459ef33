"""What the documents say is so: their code runs, their defaults are the code's, their files exist."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import pytest
from support import need, need_root, run_script

from prefork.cli.sources import Sources
from prefork.config import Limits, Settings
from prefork.errors import ExitCode
from prefork.testing import run_server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
STREAMS = (ROOT / "docs" / "streams.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def block(with_text: str) -> str:
    (found,) = [each for each in BLOCKS if with_text in each]
    return found


def test_the_first_handler_runs_as_it_is_written(tmp_path: Path) -> None:
    need("nc")
    (tmp_path / "echo.py").write_text(block("# echo.py"))
    with run_server("echo:handle", cwd=tmp_path) as server:
        done = run_script(
            "import socket, sys\n"
            "sock = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10)\n"
            "sock.sendall(b'hello\\n'); print(sock.makefile().readline())",
            str(server.port),
        )
        assert done.stdout == "hello\n\n"


HEAD = """
import asyncio

async def handle(stream):
    async for line in stream:
        stream.write(line)

"""
#: Starts the program given as text, talks to port 9000 of a network of its own, over TLS if told to, and ends it.
DRIVER = """
import socket, ssl, subprocess, sys, time
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = subprocess.Popen([sys.executable, sys.argv[1]], stderr=subprocess.PIPE, text=True)
for host in ("127.0.0.1", "::1"):
    for attempt in range(1000):
        try:
            sock = socket.create_connection((host, 9000), 5)
            break
        except OSError:
            assert server.poll() is None, server.stderr.read()
            time.sleep(0.02)
    if sys.argv[2] == "tls":
        context = ssl.create_default_context(cafile=sys.argv[3])
        sock = context.wrap_socket(sock, server_hostname="localhost")
    sock.sendall(b"hello\\n")
    print(sock.makefile().readline(), end="")
    sock.close()
server.terminate()
server.wait(20)
"""


@pytest.mark.parametrize(
    ("text", "wrap", "tls"),
    [("prefork.serve(", False, True), ("async with prefork.TCPServer", True, False), ("fork_processes", False, False)],
)
def test_the_programs_run_as_they_are_written(
    text: str, wrap: bool, tls: bool, tmp_path: Path, certs: dict[str, str]
) -> None:
    """On port 9000, as they say: in a network namespace of their own."""
    need("unshare", "ip")
    need_root()
    code = block(text)
    if wrap:
        code = f"import prefork\n\nasync def main():\n{textwrap.indent(code, '    ')}\nasyncio.run(main())\n"
    elif "import prefork" not in code:
        code = f"import prefork\n{code}"
    (tmp_path / "program.py").write_text(HEAD + code)
    for name in ("cert", "key"):
        (tmp_path / f"{name}.pem").write_text(Path(certs[name]).read_text())
    done = run_script(
        DRIVER, "program.py", "tls" if tls else "plain", certs["ca"], cwd=tmp_path, prefix=("unshare", "-n")
    )
    assert done.stdout == "hello\nhello\n", done.stderr


def test_the_table_of_options_has_the_defaults_of_the_code() -> None:
    rows = re.findall(r"^\| (`-.*?) \| (.*?) \|", README, re.M)
    said = {}
    for names, default in rows:
        for name in re.findall(r"--([a-z-]+)", names):
            values = re.findall(r"`([^`]*)`", default)
            position = re.findall(r"--([a-z-]+)", names).index(name)
            said[name] = values[position] if position < len(values) else None
    settings, limits = Settings(), Limits()
    assert said == {
        "bind": str(settings.bind[0]),
        "workers": str(settings.workers),
        "backlog": str(settings.backlog),
        "reuse-port": None,
        "insecure-paths": None,
        "leave-daemons": None,
        "tls-cert": None,
        "tls-key": None,
        "max-connections": None,
        "max-connections-per-ip": "off",
        "accept-rate": "off",
        "at-limit": limits.at_limit,
        "refusal": None,
        "max-handshakes": str(limits.max_handshakes),
        "max-unsent": f"{limits.max_unsent >> 20}M",
        "read-limit": f"{limits.read_limit >> 10}K",
        "handshake-timeout": f"{limits.handshake_timeout:g}",
        "first-byte-timeout": "off",
        "idle-timeout": "off",
        "write-timeout": f"{limits.write_timeout:g}",
        "max-age": "off",
        "drain-timeout": f"{settings.drain_timeout:g}",
        "hang-timeout": f"{settings.hang_timeout:g}",
        "boot-timeout": f"{settings.boot_timeout:g}",
        "max-connections-served": "off",
        "max-worker-age": "off",
        "max-worker-rss": "off",
        "user": None,
        "group": None,
        "umask": None,
        "pidfile": None,
        "control": None,
        "ready-fd": None,
        "loop": settings.loop,
        "log-format": settings.log_format,
        "log-level": settings.log_level,
        "config": "prefork.toml",
    }
    assert settings.max_connections_served is settings.max_worker_age is settings.max_worker_rss is None
    assert not settings.reuse_port
    for name in ("max_connections", "max_connections_per_ip", "accept_rate", "first_byte_timeout", "idle_timeout"):
        assert getattr(limits, name) is None
    assert limits.max_age is None
    assert limits.refusal == b""


def test_the_table_of_options_is_the_commands_own() -> None:
    helped = run_script("from prefork.cli.main import main\nmain()", "serve", "--help", env={"COLUMNS": "200"}).stdout
    offered = set(re.findall(r"--([a-z][a-z-]+)", helped)) - {
        "help",
        "no-reuse-port",
        "no-insecure-paths",
        "no-leave-daemons",
    }
    assert offered == set(re.findall(r"--([a-z-]+)", "".join(re.findall(r"^\| (`-.*?) \|", README, re.M))))


def test_exit_codes() -> None:
    text = README.split("Exit codes:")[1].split("\n\n")[0]
    assert [int(code) for code in re.findall(r"\b(\d+)\b", text)] == [int(code) for code in ExitCode]


@pytest.mark.parametrize("name", re.findall(r"`Limits\.(\w+)`", STREAMS))
def test_limits_that_are_told_in_streams_are_the_codes(name: str) -> None:
    value = getattr(Limits(), name)
    near = STREAMS[max(0, STREAMS.index(f"`Limits.{name}`") - 160) : STREAMS.index(f"`Limits.{name}`") + 80]
    forms = {f"{value:g}" if value < 1000 else str(value)}
    if isinstance(value, int) and value % 1024 == 0:
        forms.add(f"{value // 1024} KiB")
    assert any(form in near for form in forms), (name, value, near)


def test_the_file_of_settings_is_one(tmp_path: Path) -> None:
    found = []
    for text in re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "running.md").read_text(), re.S):
        (tmp_path / "prefork.toml").write_text(text)
        found.append(Sources({"config": [str(tmp_path / "prefork.toml")]}, {}).settings())
    settings, internet = found
    assert (internet.limits.first_byte_timeout, internet.limits.idle_timeout, internet.limits.max_age) == (
        10,
        120,
        3600,
    )
    assert [str(address) for address in settings.bind] == [":9000", "unix:/run/app/echo.sock,mode=660"]
    assert settings.max_worker_rss == 512 * 2**20


@pytest.mark.parametrize("document", sorted(path.name for path in ROOT.glob("*.md")))
def test_files_that_are_named_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    for path in re.findall(r"`((?:tests|docs|src|examples|scripts)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{document} names {path}"
    for path in re.findall(r"`((?:core|net|system|parent|worker|cli|observe)/\w+\.py)`", text):
        assert (ROOT / "src" / "prefork" / path).exists(), f"{document} names {path}"
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        assert path.startswith("http") or (ROOT / path).exists(), f"{document} links to {path}"


def test_the_project_speaks_of_itself_alone() -> None:
    """No trace of the machine it was made on."""
    home = str(ROOT)
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py"), ROOT / "Makefile"]:
        assert home not in path.read_text(), path
    assert sys.version_info >= (3, 11)
