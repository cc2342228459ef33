"""Read a Dockerfile: the part of its language that deploy/docker/Dockerfile uses. Nothing is run here.

Reference: https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

KNOWN = {"FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


class Instruction(NamedTuple):
    name: str
    flags: dict[str, str]
    """Its `--name=value` words."""
    text: str
    """What follows them."""

    def words(self) -> list[str]:
        """Return the words of an exec form; the shell form is one `sh -c`."""
        if self.text.startswith("["):
            words: list[str] = json.loads(self.text)
            return words
        return ["sh", "-c", self.text]


class Stage(NamedTuple):
    name: str
    base: str
    instructions: list[Instruction]

    def last(self, name: str) -> Instruction:
        """Return the instruction that holds, of those with this name. Raises LookupError if there is none."""
        for each in reversed(self.instructions):
            if each.name == name:
                return each
        raise LookupError(name)


def read(path: Path) -> list[Stage]:
    """Return the stages in order. Raises ValueError for an instruction that is not known here."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    stages: list[Stage] = []
    for line in "\n".join(lines).replace("\\\n", " ").split("\n"):
        name, _, rest = line.partition(" ")
        flags, text = _flags(rest.strip())
        if name not in KNOWN:
            raise ValueError(line)
        if name == "FROM":
            words = text.split()
            stages.append(Stage(words[2] if len(words) == 3 else str(len(stages)), words[0], []))
        elif name == "HEALTHCHECK":
            stages[-1].instructions.append(Instruction(name, flags, text.removeprefix("CMD").strip()))
        else:
            stages[-1].instructions.append(Instruction(name, flags, text))
    return stages


def _flags(text: str) -> tuple[dict[str, str], str]:
    found = {}
    while match := re.match(r"--([\w-]+)=(\S+)\s+", text):
        found[match[1]] = match[2]
        text = text[match.end() :]
    return found, text


def variables(text: str, before: dict[str, str]) -> dict[str, str]:
    """Return the variables of an ENV instruction, with `$NAME` replaced by what was set before."""
    pairs = (word.partition("=") for word in shlex.split(text))
    return {name: re.sub(r"\$(\w+)", lambda match: before[match[1]], value) for name, _, value in pairs}
