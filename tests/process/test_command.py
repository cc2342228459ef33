"""The command as people and scripts meet it: what it prints and where, its exit codes, one line for every error."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from helpers.certificates import Certificates
from helpers.servers import status, upgrade
from helpers.support import need, need_root, run_script, slow, wait_until

import prefork
from prefork.cli.main import main
from prefork.implementation import describe_core
from prefork.testing.harness import run_server

ECHO = """
async def handle(stream):
    async for line in stream:
        stream.write(line)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "echo.py").write_text(ECHO)
    return tmp_path


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `prefork ARGUMENTS` to its end."""
    program = [sys.executable, "-m", "prefork", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.run(program, text=True, timeout=30, check=False, **{**streams, **options})


# --- what it says about itself ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_prefork_and_python_m_prefork_are_one_command() -> None:
    script = str(Path(sys.executable).with_name("prefork"))
    for arguments in (["--version"], ["--help"], ["serve", "--help"], ["serve"], ["serve", "x:y", "--nope"]):
        results = [
            subprocess.run([*program, *arguments], capture_output=True, timeout=30, check=False)
            for program in ([script], [sys.executable, "-m", "prefork"])
        ]
        assert results[0].returncode == results[1].returncode
        assert results[0].stdout == results[1].stdout
        assert results[0].stderr == results[1].stderr


def test_the_version_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == main(["-V"]) == 0
    assert capfd.readouterr() == (2 * f"prefork {prefork.__version__}, streams {describe_core()}\n", "")


@pytest.mark.parametrize(
    ("value", "chooses"), [("1", True), ("", False), pytest.param("0", False, marks=pytest.mark.slow)]
)
def test_an_environment_variable_chooses_pure_python(value: str, chooses: bool) -> None:
    done = command("--version", env={**os.environ, "PREFORK_PURE": value})
    assert done.stdout.endswith("streams pure Python (PREFORK_PURE)\n") is chooses


@pytest.mark.parametrize("ask", [["--help"], ["-h"], ["serve", "--help"], ["serve", "-h"], ["check", "--help"]])
def test_help_goes_to_standard_output(ask: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(ask) == 0
    out, err = capfd.readouterr()
    assert out.startswith("Usage: prefork")
    assert err == ""
    assert all(len(line) <= 80 for line in out.splitlines())


def test_help_names_every_option_and_its_default(capfd: pytest.CaptureFixture[str]) -> None:
    main(["serve", "--help"])
    text = " ".join(capfd.readouterr().out.split())
    for option, default in {
        "-b, --bind ADDR": ":9000",
        "-w, --workers N": "0",
        "--backlog N": "1024",
        "--max-unsent BYTES": "256M",
        "--read-limit BYTES": "64K",
        "--handshake-timeout TIME": "5s",
        "--write-timeout TIME": "60s",
        "--drain-timeout TIME": "30s",
        "--hang-timeout TIME": "30s",
        "--boot-timeout TIME": "60s",
        "--max-connections-served N": "off",
        "--max-worker-age TIME": "off",
        "--max-worker-rss BYTES": "off",
        "--loop NAME": "asyncio",
        "--log-format NAME": "text",
        "--log-level NAME": "info",
    }.items():
        assert re.search(
            re.escape(option)
            + rf"[^\[\]]*(\[V6\][^\[\]]*\[,mode=660\][^\[\]]*\[:NAME\])?[^\[\]]*\[default: {default}\]",
            text,
        ), option
    for option in ("--tls-cert FILE", "--tls-key FILE", "--ready-fd N"):
        assert option in text


def test_check_takes_the_options_of_serve(capfd: pytest.CaptureFixture[str]) -> None:
    options = []
    for word in ("serve", "check"):
        main([word, "--help"])
        options.append(capfd.readouterr().out.partition("\nListening:\n")[2])
    assert options[0] == options[1] != ""


def test_no_arguments_print_the_help_and_fail(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Usage: prefork")


def test_help_imports_no_server() -> None:
    done = run_script(
        """
        import sys
        import prefork.cli.main
        assert not [name for name in sys.modules if name.startswith("prefork.net")]
        assert "click" not in sys.modules
        assert prefork.cli.main.main(["serve", "--help"]) == 0
        heavy = {"asyncio", "ssl", "rich", "uvloop", *(f"prefork.{n}" for n in ("assembly", "net", "worker", "parent"))}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("serv", r"no such command 'serv', did you mean serve\? \(see prefork --help\)"),
        ("--nope", r"--nope: no such option \(see prefork --help\)"),
        ("restart", r"no such command 'restart', did you mean reload\? \(see prefork --help\)"),
        ("serve echo:handle --port 80", r"--port: no such option, did you mean --bind :PORT\? \(see .*"),
        ("serve echo:handle -p 80", r"-p: no such option, did you mean --bind :PORT\? \(see .*"),
        ("serve echo:handle --threads 2", r"--threads: no such option: a worker has one event loop .*"),
        ("reload --bind :80", r"--bind: is an option of prefork serve and run \(see prefork reload --help\)"),
        ("check echo:handle --now", r"--now: is an option of prefork stop \(see prefork check --help\)"),
        ("check echo:handle --chdir /nowhere", r"--chdir /nowhere: no such file or directory"),
        ("serve", r"TARGET is missing: module:attribute or .* \(see prefork serve --help\)"),
        ("check echo:handle more", r"got unexpected extra argument.*more.*"),
        (
            "check echo:handle --worker 3",
            r"--worker: no such option, did you mean --workers\? \(see prefork check --help\)",
        ),
        ("check echo:handle --restart", r"--restart: no such option.*"),
        ("check echo:handle --reuse-port=3", r"--reuse-port: takes no value \(see prefork check --help\)"),
        ("scale", r"N is missing \(see prefork scale --help\)"),
        ("scale four", r"N four: must be a whole number"),
        ("check echo:handle -x", r"-x: no such option.*"),
        ("check echo:handle --bind", r"--bind: a value is needed after it \(see prefork check --help\)"),
        ("check echo", r"TARGET echo: expected module:attribute or path/to/file.py:attribute, such as echo:handle"),
        ("check :handle", r"TARGET :handle: expected .*"),
        ("check echo:", r"TARGET echo:: expected .*"),
        ("serve ", r"TARGET is missing.*"),
        ("check echo:handle --workers -3", r"--workers -3: must be 0 or more \(0: one per usable CPU\)"),
        ("check echo:handle -w four", r"--workers four: must be a whole number"),
        ("check echo:handle -w 1_0", r"--workers 1_0: must be a whole number"),
        ("check echo:handle -w \uff14", "--workers \uff14: must be a whole number"),
        ("check echo:handle -w 4.0", r"--workers 4.0: must be a whole number"),
        ("check echo:handle -w " + "9" * 5000, r"--workers 9{253}\.\.\.: the number is too large"),
        ("check echo:handle -w 5000", r"--workers 5000: must be 4096 or less"),
        ("check echo:handle --backlog 0", r"--backlog 0: must be 1 or more"),
        (
            "check echo:handle --drain-timeout nan",
            r"--drain-timeout nan: must be a number of seconds, such as 30 or 2.5, or a time with units, such as .*",
        ),
        ("check echo:handle --drain-timeout inf", r"--drain-timeout inf: must be a number of seconds.*"),
        ("check echo:handle --drain-timeout 30x", r"--drain-timeout 30x: must be a number of seconds.*"),
        ("check echo:handle --drain-timeout 1h30", r"--drain-timeout 1h30: must be a number of seconds.*"),
        ("check echo:handle --drain-timeout 8d", r"--drain-timeout 691200: must be 604800 seconds \(a week\) or less"),
        ("check echo:handle --max-unsent 1MB", r"--max-unsent 1MB: must be a number of bytes, .* 512M or 512MiB"),
        ("check echo:handle --drain-timeout -1", r"--drain-timeout -1: must be 0 seconds or more"),
        ("check echo:handle --drain-timeout " + "9" * 400, r"--drain-timeout inf: must be 604800 seconds .*"),
        ("check echo:handle --handshake-timeout 0", r"--handshake-timeout 0: must be more than 0 seconds"),
        (
            "check echo:handle --write-timeout 1e99",
            r"--write-timeout 1e\+99: must be 604800 seconds \(a week\).*",
        ),
        ("check echo:handle --write-timeout 1e", r"--write-timeout 1e: must be a number of seconds.*"),
        (r"check echo:handle --refusal x\q", r"--refusal x\\q: after a backslash only r, n, t, \\ or xNN can follow.*"),
        ("check echo:handle --refusal x\\", r"--refusal x\\: after a backslash only .*"),
        ("check echo:handle --bind fd:0", r"--bind fd:0: the descriptor must be 3 or more"),
        (
            "check echo:handle --bind [fe80::1]:9000",
            r"--bind \[fe80::1\]:9000: a link-local address needs its interface, as in \[fe80::1%eth0\]:9000",
        ),
        ("status --control off", r"--control off: name the socket of a running server; .*"),
        ("check echo:handle --ready-fd one", r"--ready-fd one: must be a whole number"),
        ("check echo:handle --ready-fd -1", r"--ready-fd -1: must be 0 or more"),
        ("check echo:handle --ready-fd 799", r"--ready-fd 799: bad file descriptor.*"),
        ("check echo:handle --ready-fd 999999999999", r"--ready-fd 999999999999: must be 2147483647 or less"),
        ("check echo:handle --loop gevent", r"--loop gevent: must be asyncio or uvloop"),
        ("check echo:handle --log-format xml", r"--log-format xml: must be text or json"),
        ("check echo:handle --log-level loud", r"--log-level loud: must be debug, info, warning or error"),
        ("check echo:handle -b 9000", r"--bind 9000: the port is missing: for port 9000 on all interfaces write :9000"),
        ("check echo:handle -b *:9000", r"--bind \*:9000: for all interfaces omit the host, as in :9000"),
        ("check echo:handle -b unix:/x,mode=9", r"--bind unix:/x,mode=9: mode must be three octal digits.*"),
        ("check echo:handle -b :1 -b :1", r"--bind :1: given twice"),
        ("check echo:handle -b --workers -w 3", r"--bind --workers: the port is missing.*"),
        ("check echo:handle --tls-cert a", r"--tls-cert a: its --tls-key is missing.*"),
        ("check echo:handle --tls-key a", r"--tls-key a: its --tls-cert is missing"),
        ("check echo:handle --tls-cert a --tls-key a --tls-key b", r"--tls-key b: its --tls-cert is missing"),
        ("check echo:handle --tls-cert /tmp --tls-key /tmp", r"--tls-cert /tmp: is a directory"),
        ("check echo:handle --tls-cert /nowhere --tls-key /tmp", r"--tls-cert /nowhere: no such file or directory"),
        ("check echo:handle --tls-cert /dev/null --tls-key /dev/null", r"--tls-cert /dev/null: not a regular file"),
    ],
)
def test_a_wrong_option_is_one_line_with_its_cause(
    arguments: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(f"prefork: {message}\n", err), err


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "e\x1b[31mcho"],
        ["check", "echo\nprefork ready"],
        ["check", "\u202eecho"],
        ["check", "\udcff"],
        ["check", "echo:handle", "--b\x1b[2Jind", "x"],
        ["check", "echo:handle", "--bind", "\x1b\r\n\u2028:80"],
        ["check", "echo:handle", "--log-level", "\x1b" * 10_000],
        ["check", "echo:handle", "--tls-cert", "\udcff\n", "--tls-key", "x"],
        ["\x1b]0;title\x07"],
        ["check", "echo:handle", "", "\x9b"],
        ["check", ""],
        [""],
    ],
)
def test_control_characters_in_arguments_are_escaped(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("prefork: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    assert len(err) < 2100


def test_a_ready_fd_that_cannot_be_written_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    try:
        assert main(["check", "echo:handle", "--ready-fd", str(reader)]) == 2
    finally:
        os.close(reader)
        os.close(writer)
    assert re.fullmatch(rf"prefork: --ready-fd {reader}: is open for reading only.*\n", capfd.readouterr().err)


def test_a_missing_uvloop_is_named() -> None:
    done = run_script(
        """
        import importlib.util, sys
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, package=None: None if name == "uvloop" else find(name, package)
        from prefork.cli.main import main
        sys.exit(main(["check", "echo:handle", "--loop", "uvloop"]))
        """
    )
    assert done.returncode == 2
    assert re.fullmatch(r"prefork: --loop uvloop: .*pip install.*\n", done.stderr), done.stderr


@pytest.mark.parametrize("word", ["check", slow("serve")])
@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("", "service:handle", r".*no attribute 'handle'.*"),
        ("def (", "service:handle", r".*SyntaxError.*"),
        ("raise ValueError('a\\x1b[31m\\nb')", "service:handle", r".*ValueError.*"),
        ("import sys; sys.exit(0)", "service:handle", r".*SystemExit.*"),
        ("import nowhere_at_all", "service:handle", r".*nowhere_at_all.*"),
        ("handle = 3", "service:handle", r".*"),
        ("handle = 3", "nowhere_at_all:handle", r".*nowhere_at_all.*"),
        ("handle = 3", "./nowhere.py:handle", r".*no such file.*"),
        ("handle = 3", "service\nprefork: ready", r"service service\\nprefork: ready: .*"),
    ],
)
def test_a_service_that_cannot_be_loaded_exits_with_3(
    word: str, text: str, target: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "service.py").write_text(text)
    options = ["--bind", "127.0.0.1:0", "--workers", "1"] if word == "serve" else []
    done = command(word, target, *options, "--log-level", "error", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(f"prefork: {message}", last), done.stderr
    assert done.stderr.replace("\n", "").isprintable()


def test_the_traceback_of_a_service_that_cannot_be_imported_is_shown_if_it_is_asked_for(folder: Path) -> None:
    (folder / "service.py").write_text("def connect():\n    raise ValueError('no \\x1b[31m database')\n\nconnect()\n")
    done = command("check", "service:handle", "--traceback", cwd=folder)
    *trace, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (3, "")
    assert trace[0] == "Traceback (most recent call last):"
    assert f'  File "{folder}/service.py", line 4, in <module>' in trace
    assert trace[-1] == r"ValueError: no \x1b[31m database"
    assert last.startswith("prefork: service service:handle: ValueError: ")
    done = command("serve", "service:handle", "--traceback", "-w", "1", "-b", "127.0.0.1:0", cwd=folder)
    assert done.returncode == 3
    assert re.search(
        rf'error .*: the service cannot start: ValueError: .*\n(    .*\n)+ .*"{folder}/service.py", line 4', done.stderr
    )
    assert done.stderr.splitlines()[-1] == last


def test_an_address_in_use_exits_with_4(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = command("serve", "echo:handle", "--bind", address, cwd=folder)
    assert done.returncode == 4
    assert done.stdout == ""
    assert re.fullmatch(rf"prefork: bind {address}: address already in use.*\n", done.stderr)


def test_an_unknown_host_name_exits_with_4(folder: Path) -> None:
    done = command("serve", "echo:handle", "--bind", "does-not-exist.invalid:9000", cwd=folder)
    assert done.returncode == 4
    assert re.fullmatch(r"prefork: bind does-not-exist\.invalid:9000: .*\n", done.stderr)


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_says_ok_and_the_names_of_a_certificate_and_binds_nothing(folder: Path, certs: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        second = Certificates(folder).pair("*.a.test", "b.test")
        tls = ["--tls-cert", certs["cert"], "--tls-key", certs["key"]]
        tls += ["--tls-cert", str(second.cert), "--tls-key", str(second.key)]
        path = folder / "echo.sock"
        done = command("check", "echo:handle", "-b", address, "-b", f"unix:{path}", *tls, cwd=folder)
        assert not path.exists()
    assert (done.returncode, done.stderr) == (0, "")
    names = f"--tls-cert {certs['cert']}: for localhost, every other client (EC)\n"
    names += f"--tls-cert {second.cert}: for *.a.test, b.test (EC)\n"
    assert done.stdout == f"ok: echo:handle is a stream handler\n{names}"


def test_check_reads_the_certificates(folder: Path, certs: dict[str, str]) -> None:
    done = command("check", "echo:handle", "--tls-cert", certs["cert"], "--tls-key", certs["ca"], cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"prefork: --tls-.*\n", done.stderr)


def test_chdir_is_as_if_the_command_had_been_started_there(folder: Path) -> None:
    (folder / "here").mkdir()
    (folder / "echo.py").rename(folder / "here" / "echo.py")
    (folder / "here" / "other.toml").write_text('pidfile = "nowhere/pid"\ndrain_timeout = "1m30s"\nread_limit = "1MiB"')
    done = command("check", "echo:handle", "--chdir", "here", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "ok: echo:handle is a stream handler\n")
    done = command("check", "echo:handle", "-c", "other.toml", cwd=folder, env={**os.environ, "PREFORK_CHDIR": "here"})
    assert f"--pidfile nowhere/pid: the directory {folder}/here/nowhere does not exist" in done.stderr
    assert done.stderr.endswith(" (in other.toml)\n")


@pytest.mark.slow
def test_the_successor_of_an_upgrade_stays_in_the_directory_of_its_predecessor(folder: Path) -> None:
    (folder / "here").mkdir()
    (folder / "echo.py").rename(folder / "here" / "echo.py")
    options = ["-w", "1", "--chdir", "here", "--control", "control"]
    with run_server("echo:handle", *options, cwd=folder) as server:
        for _ in range(2):
            pid = upgrade(folder / "here")
        assert os.readlink(f"/proc/{pid}/cwd") == str(folder / "here")
        with connected(server.port) as client:
            client.sendall(b"hello\n")
            assert client.recv(10) == b"hello\n"
        assert command("stop", cwd=folder / "here", env={**os.environ, "PREFORK_CONTROL": "control"}).returncode == 0


def test_a_variable_that_names_no_option_is_a_warning_of_check_and_of_a_server(folder: Path) -> None:
    env = {**os.environ, "PREFORK_WORKRS": "3"}
    done = command("check", "echo:handle", cwd=folder, env=env)
    assert (done.returncode, done.stdout) == (0, "ok: echo:handle is a stream handler\n")
    assert done.stderr == "prefork: warning: PREFORK_WORKRS: no such option, did you mean PREFORK_WORKERS?\n"
    with run_server("echo:handle", "-w", "1", cwd=folder, env=env) as server:
        assert re.search(
            r" warning .*: PREFORK_WORKRS: no such option, did you mean PREFORK_WORKERS\?\n", server.stderr()
        )


DAY = datetime.timedelta(days=1)


def certificate(folder: Path, start: datetime.timedelta, end: datetime.timedelta) -> list[str]:
    """Write a certificate that is valid from `start` to `end`, both from now, and return the options that name it."""
    now = datetime.datetime.now(datetime.UTC)
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    made = authority.issue_cert(
        "localhost", not_before=now + start, not_after=now + end, key_type=trustme.KeyType.ECDSA
    )
    made.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    return ["--tls-cert", str(folder / "both.pem"), "--tls-key", str(folder / "both.pem")]


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (
            -9 * DAY,
            -1 * DAY,
            r"prefork: --tls-cert .*both.pem: it expired on 20.* UTC, so clients refuse it \(renew it\)\n",
        ),
        (
            1 * DAY,
            9 * DAY,
            r"prefork: --tls-cert .*both.pem: it is not valid before 20.* UTC, so clients refuse it.*\n",
        ),
        (-1 * DAY, 9.5 * DAY, r"prefork: warning: --tls-cert .*both.pem: it expires in 9 days, on 20.* UTC\n"),
        (-1 * DAY, 31 * DAY, ""),
    ],
)
def test_check_looks_at_the_dates_of_a_certificate(
    start: datetime.timedelta, end: datetime.timedelta, message: str, folder: Path
) -> None:
    done = command("check", "echo:handle", *certificate(folder, start, end), cwd=folder)
    assert re.fullmatch(message, done.stderr), done.stderr
    assert done.returncode == (2 if "refuse" in message else 0)


def test_a_server_tells_at_the_start_and_at_a_reload_that_its_certificate_ends(folder: Path) -> None:
    options = ["-w", "1", "--control", "control", *certificate(folder, -1 * DAY, 29.5 * DAY)]
    with run_server("echo:handle", *options, cwd=folder) as server:
        assert "both.pem: it expires in 29 days, on 20" in server.stderr()
        ((file, end),) = [(each["file"], each["not_after"]) for each in status(folder)["certificates"]]
        assert file.endswith("both.pem")
        assert 28 < (end - time.time()) / DAY.total_seconds() < 30
        certificate(folder, -9 * DAY, -1 * DAY)
        server.signal(signal.SIGHUP)
        wait_until(lambda: re.search(r" error .*both.pem: it expired on .*, so clients refuse it", server.stderr()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--pidfile nowhere/pid", r"--pidfile nowhere/pid: the directory .*/nowhere does not exist.*"),
        ("--pidfile .", r"--pidfile .: it is not a regular file"),
        ("--control echo.py/control", r"--control echo.py/control: the directory .*/echo.py is not a directory"),
        ("--bind unix:nowhere/sock", r"--bind nowhere/sock: the directory .*"),
        ("--bind fd:799", r"bind fd:799: bad file descriptor \(it is not open; the parent has to pass it on\)"),
    ],
)
def test_check_looks_at_the_places_that_options_name(
    options: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["check", "echo:handle", *options.split()]) == (4 if "fd:" in options else 2)
    out, err = capfd.readouterr()
    assert re.fullmatch(f"prefork: {message}\n", err), err
    assert out == ""
    assert sorted(os.listdir(folder)) == ["echo.py"]


def test_check_finds_a_directory_that_its_user_cannot_write_to() -> None:
    need_root()
    code = """
    import os, sys
    from prefork.assembly.places import check_places
    from prefork.config import Settings
    os.setresuid(65534, 65534, 65534)
    try:
        check_places(Settings(pidfile="/etc/prefork.pid"))
    except ValueError as exc:
        sys.exit(str(exc))
    """
    expected = "--pidfile /etc/prefork.pid: no file can be made in /etc, which this user cannot write to\n"
    assert run_script(code).stderr == expected


# --- standard streams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["check", "echo:handle"]])
def test_a_closed_standard_output_is_no_traceback(arguments: list[str], folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = command(*arguments, stdout=writer, cwd=folder)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_standard_output_is_one_line(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        done = command("check", "echo:handle", stdout=full, cwd=folder)
    assert done.returncode == 2
    assert done.stderr == "prefork: standard output: no space left on device\n"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--version"], ["serve", "echo:handle", "-w", "x"]])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_standard_streams_are_survived(arguments: list[str], closed: str, folder: Path) -> None:
    line = " ".join([sys.executable, "-m", "prefork", *arguments, closed])
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30, cwd=folder, check=False)
    assert done.returncode == (0 if arguments == ["--version"] else 2)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_a_server_without_standard_streams_gives_no_socket_their_numbers(folder: Path) -> None:
    service = folder / "loud.py"
    service.write_text(
        "import os, sys\n"
        "async def handle(stream):\n"
        "    print('to standard output', flush=True)\n"
        "    os.write(1, b'raw'); os.write(2, b'raw')\n"
        "    stream.write(b'fine')\n"
    )
    ready, told = os.pipe()
    path = folder / "loud.sock"
    with contextlib.closing(os.fdopen(ready, "rb")) as stream:
        serve = f"-m prefork serve loud:handle -b unix:{path} -w 1 --ready-fd {told} <&- >&- 2>&-"
        process = subprocess.Popen(["sh", "-c", f"exec {sys.executable} {serve}"], cwd=folder, pass_fds=[told])
        os.close(told)
        try:
            assert stream.readline() == b"READY\n"
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(path))
                data = b""
                while more := client.recv(100):
                    data += more
            assert data == b"fine"
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


# --- interruption and bugs --------------------------------------------------------------------------------------------


def run_with(replacement: str, word: str = "run") -> subprocess.CompletedProcess[str]:
    """The command, with one function of the assembly replaced by one that fails."""
    module = "serve" if word == "run" else "preflight"
    return run_script(
        f"""
        import sys
        from prefork.assembly import {module}
        from prefork.cli.main import main
        def {word}(settings, target):
            {replacement}
        {module}.{word} = {word}
        sys.exit(main(["{"serve" if word == "run" else "check"}", "echo:handle"]))
        """
    )


def test_an_interruption_is_silent() -> None:
    done = run_with("raise KeyboardInterrupt")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_interruption_during_the_import_is_silent(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "prefork", "check", "slow:handle"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode not in (0, 70)
    assert out == ""
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 1


def test_a_bug_prints_its_traceback_and_exits_with_70() -> None:
    done = run_with(r"raise RuntimeError('peer\x1b[31m\nprefork: fine')")
    assert (done.returncode, done.stdout) == (70, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert r"RuntimeError: peer\x1b[31m" in lines
    assert lines[-1] == "prefork: this is a bug in prefork: please report it with the lines above"
    assert "\x1b" not in done.stderr


def test_a_broken_pipe_inside_is_not_taken_for_a_reader_that_left() -> None:
    done = run_with("raise BrokenPipeError(32, 'Broken pipe')")
    assert done.returncode == 3
    assert re.fullmatch(r"prefork: the command cannot run: broken pipe \(in .*\)\n", done.stderr)


@pytest.mark.parametrize(("failure", "code"), [("ConfigError", 2), ("ServiceError", 3), ("PreforkError", 70)])
def test_each_failure_has_its_exit_code(failure: str, code: int) -> None:
    done = run_with(f"from prefork import errors; raise errors.{failure}('what\\x1b\\nhappened')")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "prefork: what\\x1b\\nhappened\n")


# --- serving ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        yield client


def test_serve_logs_its_address_serves_and_stops(folder: Path) -> None:
    path = folder / "echo.sock"
    with run_server(
        "echo:handle", "--workers", "2", bind=("127.0.0.1:0", f"unix:{path},mode=660"), cwd=folder
    ) as server:
        with connected(server.port) as client:
            client.sendall(b"hello\n")
            assert client.recv(100) == b"hello\n"
        assert path.stat().st_mode & 0o777 == 0o660
        assert server.stop() == 0
        log = server.stderr()
    texts = [line.split(": ", 1)[1] for line in log.splitlines()]
    assert re.fullmatch(r"listening on 127\.0\.0\.1:\d+ \(tcp\)", texts[0])
    assert texts[1] == f"listening on unix:{path} (unix)"
    assert texts[2].startswith("no deadline for: first byte (--first-byte-timeout), ")
    assert texts[3] == "ready: 2 workers"
    assert re.search(r" info worker [01]\[\d+\]: ", log)
    assert not path.exists()


def test_the_read_limit_ends_a_connection_with_a_longer_line(folder: Path) -> None:
    with run_server("echo:handle", "-w", "1", "--read-limit", "16", cwd=folder) as server:
        with connected(server.port) as client:
            client.sendall(b"short\n")
            assert client.recv(100) == b"short\n"
            client.sendall(b"longer than sixteen bytes\n")
            assert client.recv(100) == b""
        wait_until(lambda: "it sent a line of more than 16 bytes (--read-limit)" in server.stderr())


def test_json_logs_of_all_processes_are_json(folder: Path) -> None:
    (folder / "noisy.py").write_text(
        "import logging\n"
        "async def handle(stream):\n"
        "    line = await stream.readline()\n"
        "    logging.getLogger('noisy').warning('got %s', line.decode())\n"
        "    raise ValueError(line.decode())\n"
    )
    with run_server("noisy:handle", "-w", "2", "--log-format", "json", cwd=folder) as server:
        with connected(server.port) as client:
            client.sendall(b'"}\x1b[31m\x7f\n')
            assert client.recv(100) == b""
        wait_until(lambda: "HandlerFailed" in server.stderr())
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.stderr().splitlines()]
    events = [line["event"] for line in lines if line["process"] == "supervisor"]
    assert events[:3] == ["Listening", "NoDeadline", "Ready"]
    (theirs,) = [line for line in lines if line["logger"] == "noisy"]
    assert theirs["message"] == 'got "}\x1b[31m\x7f\n'
    (failed,) = [line for line in lines if line.get("event") == "HandlerFailed"]
    assert failed["worker"] == theirs["worker"] in (0, 1)
    assert "ValueError" in failed["traceback"]


def test_text_logs_show_nothing_of_a_peer_raw(folder: Path) -> None:
    (folder / "noisy.py").write_text(
        "import logging, warnings\n"
        "async def handle(stream):\n"
        "    line = (await stream.read()).decode('latin-1')\n"
        "    logging.getLogger('noisy').warning('got ' + line.replace('%', '%%'))\n"
        "    warnings.warn(line)\n"
        "    raise ValueError(line)\n"
    )
    forged = "\n2026-11-24T11:02:03.123+00:00 info supervisor[1]: ready: 4 workers\n"
    with run_server("noisy:handle", "-w", "1", cwd=folder) as server:
        with connected(server.port) as client:
            client.sendall(bytes(range(256)) + forged.encode() + b"\x1b]0;x\x07\r\n")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b""
        wait_until(lambda: "handler failed" in server.stderr())
        assert server.stop() == 0
        log = server.stderr()
    assert log.replace("\n", "").isprintable()
    assert all(re.match(r"\S+ [a-z]+ (supervisor|worker 0)\[\d+\]: | {4}", line) for line in log.splitlines())
    assert not [line for line in log.splitlines() if line.endswith("ready: 4 workers") and not line.startswith("    ")]


def test_the_level_applies_in_every_process(folder: Path) -> None:
    with run_server("echo:handle", "--log-level", "warning", "-w", "1", wait_ready=True, cwd=folder) as server:
        assert server.stderr() == ""
        (worker,) = server.worker_pids()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: "SIGKILL" in server.stderr())
        assert server.stop() == 0
        assert all(" info " not in line for line in server.stderr().splitlines())


def test_a_log_that_is_not_read_does_not_stop_the_server(folder: Path) -> None:
    (folder / "noisy.py").write_text(
        "import logging\n"
        "async def handle(stream):\n"
        "    async for line in stream:\n"
        "        for _ in range(50): logging.warning('x' * 1000)\n"
        "        stream.write(line)\n"
    )
    need("sh")
    reader, writer = os.pipe()
    # 2>&N: the server's standard error is a pipe whose reader never reads.
    prefix = ["sh", "-c", f'exec "$@" 2>/proc/{os.getpid()}/fd/{writer}', "sh"]
    path = folder / "noisy.sock"
    try:
        with run_server("noisy:handle", "-w", "1", bind=(f"unix:{path}",), prefix=prefix, cwd=folder) as server:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(path))
                for _ in range(20):
                    client.sendall(b"on\n")
                    assert client.recv(100) == b"on\n"
            assert server.stop() == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_ready_is_written_to_the_descriptor(folder: Path) -> None:
    # run_server waits for exactly that; here also that it comes once, and is the end of it.
    ready, told = os.pipe()
    with contextlib.closing(os.fdopen(ready, "rb")) as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefork", "serve", "echo:handle", "-b", "127.0.0.1:0", "--ready-fd", str(told)],
            cwd=folder,
            pass_fds=[told],
            stderr=subprocess.DEVNULL,
        )
        os.close(told)
        try:
            assert stream.read() == b"READY\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("words", "other"), [(("run", "--tls-cert", "c", "x.py"), "serve"), (("serve", "--ready", "notify", "a:b"), "run")]
)
def test_an_option_of_the_other_command_is_told_by_name(words: tuple[str, ...], other: str) -> None:
    done = command(*words)
    assert done.returncode == 2
    assert f"{words[1]}: is an option of prefork {other} (see prefork {words[0]} --help)" in done.stderr
