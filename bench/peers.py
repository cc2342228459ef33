"""Install the peers that not every Python supports, each by itself, and remember why one is absent.

`python -m bench.peers` installs into the environment that it runs in. What the peers serve does not belong here.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: The dependency group of pyproject.toml.
GROUP = "bench-loops"
REASONS = Path(sys.prefix) / "not-installed.json"
#: Seconds for one of them. Building from source may need compilers that are not here.
DEADLINE = 300.0


def wanted() -> list[str]:
    """Return the requirements of the group, in their order."""
    groups: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return groups[GROUP]


def name_of(requirement: str) -> str:
    """Return the name of a requirement, which for each of these is its module's as well."""
    return requirement.partition(">")[0].partition("=")[0].strip()


def cause(complaints: str) -> str:
    """Return pip's reason in one line: the Python that is required, otherwise its first error."""
    errors = [line.removeprefix("ERROR: ").strip() for line in complaints.splitlines() if line.startswith("ERROR: ")]
    for error in errors:
        if "Requires-Python" in error:
            # pip names every version that it has ignored; the newest is the last one.
            return "it requires Python " + error.rpartition("Requires-Python")[2].strip()
        if "(from versions: none)" in error:
            return "there is no release of it for this Python and machine"
    return errors[0] if errors else "pip said nothing about it"


def install() -> dict[str, str]:
    """Install each requirement; return why those that failed did, by name. One that fails does not stop the others."""
    failed = {}
    for requirement in wanted():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--prefer-binary", requirement]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            failed[name_of(requirement)] = f"it was not installed within {DEADLINE:g} s"
        else:
            if done.returncode:
                failed[name_of(requirement)] = cause(done.stderr)
    return failed


def absent(module: str) -> str:
    """Return why `module` cannot be imported, or "" if it can."""
    if importlib.util.find_spec(module) is not None:
        return ""
    try:
        reasons: dict[str, str] = json.loads(REASONS.read_text())
    except (OSError, ValueError):
        reasons = {}
    return reasons.get(module, "it is not installed; make bench installs it")


if __name__ == "__main__":
    found = install()
    REASONS.write_text(json.dumps(found))
    for name, reason in found.items():
        print(f"{name} is not measured: {reason}")
