"""What a shell is told when Tab is pressed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.support import need

from prefork.cli.commands import COMMANDS
from prefork.cli.completion import SHELLS, answer, script
from prefork.cli.main import main


def complete(monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """Return what bash is told at the end of a line."""
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    return answer(COMMANDS, "bash_complete").splitlines()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("prefork st", ["plain,status", "plain,stacks", "plain,stop"]),
        ("prefork serve --log-f", ["plain,--log-format"]),
        ("prefork check --log-format ", ["plain,text", "plain,json"]),
        ("prefork serve --at-limit w", ["plain,wait"]),
        ("prefork serve --tls-cert ", ["file,"]),
        ("prefork serve --chdir ", ["dir,"]),
        ("prefork serve ec", ["file,ec"]),
        ("prefork run --ready n", ["plain,notify"]),
        ("prefork run --bind :80 server.py a", ["file,a"]),
        ("prefork completion ", ["plain,bash", "plain,zsh", "plain,fish"]),
        ("prefork nonsense --", []),
    ],
)
def test_what_can_stand_at_the_end_of_a_line(line: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete(monkeypatch, line) == found


def test_control_sockets_of_running_servers_are_completed_and_otherwise_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert complete(monkeypatch, "prefork status --control ") == ["file,"]
    (tmp_path / "prefork").mkdir(mode=0o700)
    path = str(tmp_path / "prefork" / "7.sock")
    with socket.socket(socket.AF_UNIX) as running:
        running.bind(path)
        running.listen()
        assert complete(monkeypatch, "prefork status --control ") == [f"plain,{path}"]


@pytest.mark.parametrize("instruction", ["", "bash", "bash_source", "tcsh_complete", "_", "bash_complete"])
def test_an_instruction_that_makes_no_sense_prints_nothing(instruction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMP_WORDS", raising=False)
    assert answer(COMMANDS, instruction) == ""


def test_the_command_prints_the_script_of_each_shell(capfd: pytest.CaptureFixture[str]) -> None:
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        assert capfd.readouterr() == (script(shell), "")
    assert main(["completion", "tcsh"]) == 2
    assert capfd.readouterr().err == "prefork: SHELL tcsh: must be bash, zsh or fish\n"


def test_bash_completes_with_the_script() -> None:
    need("bash")
    line = 'COMP_WORDS=(prefork reload --c); COMP_CWORD=2; _prefork_completion "$1"; echo "${COMPREPLY[@]}"'
    program = Path(sys.executable).with_name("prefork")
    done = subprocess.run(
        ["bash", "-c", f"{script('bash')}\n{line}", "bash", program],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "TERM": "dumb"},
    )
    assert (done.stdout, done.stderr) == ("--control\n", "")
