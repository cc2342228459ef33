"""The pages show the files of deploy/ as they are, and lead to each of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from helpers.deployment import DEPLOY, PREFORK, ROOT

PAGES = [ROOT / "docs" / f"{name}.md" for name in ("deployment", "one-machine", "many-machines", "kubernetes")]
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())


def first_comment(text: str) -> str:
    """Return the line that says where a file belongs; a script has it after the line that names its interpreter."""
    lines = text.splitlines()
    return lines[1] if lines[0].startswith("#!") else lines[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_file_that_a_page_shows_is_the_file(page: Path) -> None:
    shown = re.findall(r"```\w*\n((?:#!.*\n)?# [\w./-]+\n.*?)```", page.read_text(), re.S)
    theirs = {first_comment(path.read_text()): path for path in FILES}
    for block in shown:
        if path := theirs.get(first_comment(block)):
            assert block == path.read_text(), f"{page.name} and {path}"


def test_the_options_of_a_machine_behind_a_balancer_are_accepted(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "many-machines.md").read_text()
    options = " ".join(re.findall(r"^    (--(?:bind|metrics) .*)$", page, re.MULTILINE)).split()
    assert {"--proxy-from", "--agent", "--drain-delay"} <= set(options)
    (tmp_path / "app.py").write_text("async def handle(stream): ...\n")
    command = [PREFORK, "check", "app:handle", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr


def test_the_pages_lead_to_every_file() -> None:
    text = "".join(page.read_text() for page in PAGES)
    linked = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\((\.\./deploy/[^)#]+)\)", text)}
    others = {"grafana", "prometheus"}
    missing = {path for path in FILES if not linked & {path, *path.parents}}
    assert {path.relative_to(DEPLOY).parts[0] for path in missing} <= others
