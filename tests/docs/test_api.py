"""The page of the Python interface agrees with the docstrings and covers every public name."""

from __future__ import annotations

import re
from pathlib import Path

from helpers.support import run_script

import prefork
import prefork.testing

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    done = run_script(ROOT / "scripts" / "api.py", "--check", cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_has_every_public_name() -> None:
    headings = set(re.findall(r"^### (\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M))
    modules = (prefork, prefork.metrics, prefork.otel, prefork.testing)
    names = {name for module in modules for name in module.__all__}
    assert names - {"__version__", "metrics", "otel"} <= headings
