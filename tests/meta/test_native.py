"""The C sources: their size, and that the compiler and its analyzer find nothing in them."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "native"
SOURCES = sorted(ROOT.glob("*.c"))
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-fanalyzer"]
MAX_LINES = 500
MAX_COLUMNS = 120


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.[ch]")), ids=lambda path: path.name)
def test_a_file_is_short_and_narrow(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < MAX_LINES
    assert [number for number, line in enumerate(lines, 1) if len(line) > MAX_COLUMNS or "\t" in line] == []
    assert lines[0].startswith("/* ")


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_compiler_finds_nothing(source: Path) -> None:
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").exists():
        pytest.skip("needs Python's headers")
    command = ["gcc", *FLAGS, f"-I{ROOT}", f"-isystem{include}", "-c", "-o", "/dev/null", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
