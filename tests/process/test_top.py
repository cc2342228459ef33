"""`prefork top` beside a real server: on a terminal, which it leaves as it found it, and as plain text."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import pytest
from helpers.servers import ECHO, command, serving, status
from helpers.support import run_script, wait_until
from helpers.terminal import Terminal, on_terminal

#: What a program that uses the whole screen has to undo: the other screen, the hidden cursor, pasting in brackets.
UNDONE = (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?2004l")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(ECHO)
    return tmp_path


#: `prefork`, as it is without the extra.
WITHOUT_TEXTUAL = (
    "import sys; sys.modules['textual'] = sys.modules['rich'] = None\n"
    "from prefork.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


def top(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "prefork", "top", "--control", str(folder / "control"), *options]


def assert_as_before(terminal: Terminal) -> None:
    assert terminal.settings() == terminal.settings_before
    for sequence in UNDONE:
        assert sequence in terminal.written


@pytest.mark.slow
def test_it_shows_a_server_and_its_connections_and_ends_one_on_request(folder: Path) -> None:
    with serving(folder) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"hello\n")
        assert client.recv(10) == b"hello\n"
        peer = f"127.0.0.1:{client.getsockname()[1]}"
        options = ("--once", "--interval", "0.2", "--view", "connections", "--control", str(folder / "control"))
        frame = run_script(WITHOUT_TEXTUAL, "top", *options).stdout
        assert "ready 2/2   connections 1" in frame
        assert peer in frame
        assert "\x1b" not in frame
        with on_terminal(top(folder, "--interval", "0.2"), folder) as terminal:
            terminal.wait_for(f"pid {server.pid}")
            assert terminal.settings() != terminal.settings_before
            terminal.send("2")
            terminal.wait_for(peer)
            terminal.wait_for("rtt ")
            terminal.send("k")
            terminal.wait_for("yes")
            terminal.send("y")
            terminal.wait_for("kicked 1 connection")
            terminal.wait_for("no connection is open")
            with pytest.raises(ConnectionResetError):
                client.recv(10)
            terminal.send("q")
            assert terminal.end() == 0
            assert_as_before(terminal)
        assert status(folder)["totals"]["closed"]["kicked"] == 1


@pytest.mark.slow
def test_it_says_in_one_line_why_it_cannot_begin(folder: Path) -> None:
    done = command(folder, "top")
    assert done.returncode == 2
    assert done.stderr == "prefork: top needs a terminal; prefork top --once prints one frame as plain text\n"
    for words, reason in (
        (["--interval", "0.1"], "--interval 0.1: must be 0.2 seconds or more"),
        (["--view", "all"], "--view all: must be workers, connections, account or troubles"),
        (["--once"], "no server listens there"),
    ):
        assert reason in command(folder, "top", *words).stderr


def test_without_textual_it_names_the_cure(folder: Path) -> None:
    arguments = [sys.executable, "-c", WITHOUT_TEXTUAL, "top", "--control", str(folder / "control")]
    with on_terminal(arguments, folder) as terminal:
        assert terminal.end() == 2
        assert b"pip install 'prefork[top]'" in terminal.written
        assert b"\x1b" not in terminal.written


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_with_the_terminal_as_before(folder: Path, number: signal.Signals) -> None:
    with serving(folder), on_terminal(top(folder), folder) as terminal:
        terminal.wait_for("accepts/s")
        terminal.process.send_signal(number)
        assert terminal.end() == 128 + number
        assert_as_before(terminal)


@pytest.mark.slow
def test_a_terminal_that_takes_no_output_does_not_keep_it(folder: Path) -> None:
    with serving(folder), on_terminal(top(folder, "--interval", "0.2"), folder) as terminal:
        terminal.wait_for("accepts/s")
        terminal.stop_output()
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.process.wait(20) == 128 + signal.SIGTERM
        assert terminal.settings() == terminal.settings_before


@pytest.mark.slow
def test_it_ends_with_its_terminal(folder: Path) -> None:
    with serving(folder), on_terminal(top(folder, "--interval", "0.2"), folder) as terminal:
        terminal.wait_for("accepts/s")
        terminal.hang_up()
        assert terminal.process.wait(20) == 128 + signal.SIGHUP


@pytest.mark.slow
def test_a_crash_leaves_the_terminal_as_before_and_says_what_it_was(folder: Path) -> None:
    script = (
        "import sys\n"
        "from prefork.console.top.app import run\n"
        "from prefork.console.top.model import View\n"
        "class Broken:\n"
        "    def read(self, connections): raise RuntimeError('a bug of mine')\n"
        "sys.exit(run(Broken(), 1.0, False, View.WORKERS))\n"
    )
    with on_terminal([sys.executable, "-c", script], folder) as terminal:
        assert terminal.end() == 70
        assert_as_before(terminal)
        assert b"a bug of mine" in terminal.written


@pytest.mark.slow
def test_it_waits_for_a_server_that_is_gone_and_shows_the_next_one(folder: Path) -> None:
    with serving(folder) as first, on_terminal(top(folder, "--interval", "0.2"), folder) as terminal:
        terminal.wait_for(f"pid {first.pid}")
        first.stop()
        terminal.wait_for("server gone, waiting")
        since = len(terminal.written)
        with serving(folder) as second:
            terminal.wait_for(str(second.pid), since)
            terminal.wait_for("serving", since)
            terminal.send("4")
            terminal.wait_for("the server answers again", since)
            terminal.send("q")
            assert terminal.end() == 0


@pytest.mark.slow
def test_a_reload_is_seen_and_a_resize_repaints(folder: Path) -> None:
    with serving(folder) as server, on_terminal(top(folder, "--interval", "0.2"), folder) as terminal:
        terminal.wait_for(f"pid {server.pid}")
        since = len(terminal.written)
        terminal.resize(140, 30)
        terminal.wait_for("LAST EXIT", since)
        done = command(folder, "reload")
        assert done.returncode == 0
        terminal.send("4")
        terminal.wait_for("reloaded: generation 1", since)
        terminal.send("q")
        assert terminal.end() == 0


@pytest.mark.slow
def test_a_quiet_server_costs_the_terminal_little(folder: Path) -> None:
    """Over a slow line the view must stay below what a line of 9,600 bit/s carries."""
    with serving(folder), on_terminal(top(folder, "--interval", "0.2"), folder, 160, 45) as terminal:
        terminal.wait_for("accepts/s 0")
        terminal.read(1.0)
        assert len(terminal.read(4.0)) / 20 < 600, "bytes for each of 20 readings"
        wait_until(lambda: status(folder)["state"] == "serving")
