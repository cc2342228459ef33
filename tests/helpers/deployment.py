"""The files of deploy/ as tests use them: with the command of this machine."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
#: The command that the files name by the path that it has where they are installed.
PREFORK = str(Path(sys.executable).with_name("prefork"))


def unit(name: str) -> dict[str, str]:
    """Return the settings of a unit of systemd; the last value of one that is there more than once."""
    text = (DEPLOY / "systemd" / name).read_text().replace("\\\n", "")
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
