"""The manual page is what the commands and the table of options say now, and formats without a warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefork.cli.commands import COMMANDS
from prefork.cli.options import OPTIONS
from prefork.errors import ExitCode

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "prefork.1"


def test_the_page_is_current_and_has_every_command_option_and_exit_code() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "man.py", "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    text = PAGE.read_text().replace("\\-", "-")
    assert all(re.search(rf"^\.SS \\fBprefork {name}\\fR", text, re.M) for name in COMMANDS.commands)
    assert [each.name for each in OPTIONS if f"{each.name}" not in text] == []
    assert all(f"\n\\fB{int(code)}\\fR\n" in text for code in ExitCode)


@pytest.mark.parametrize("formatter", [["mandoc", "-Tlint", "-Wwarning"], ["man", "--warnings", "-Tutf8", "-l"]])
def test_the_page_formats_without_a_warning(formatter: list[str]) -> None:
    if shutil.which(formatter[0]) is None:
        pytest.skip(f"{formatter[0]} is not installed")
    done = subprocess.run(
        [*formatter, PAGE], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"}, timeout=60
    )
    lint = done.stdout if formatter[0] == "mandoc" else ""
    assert (done.returncode, done.stderr, lint) == (0, "", "")
