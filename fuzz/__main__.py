"""The command: `python -m fuzz --count N --seconds S [--compare]`. It ends with status 0 if nothing was found.

Needs the dependency group `fuzz`, which `make fuzz` installs in an environment of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["prefork.core", "prefork.net.proxy_out"]):
    from . import properties, seeds
    from .differences import Comparison

#: Where the corpus grows from run to run, and where an input is left that breaks something.
FOLDER = Path("build/fuzz")


class Run:
    """What libFuzzer calls with each input, until the count or the time is reached."""

    def __init__(self, count: int, seconds: float, comparison: Comparison | None) -> None:
        self._left = self._count = count
        self._began = time.monotonic()
        self._end = self._began + seconds
        self._comparison = comparison
        self._check = properties.check if comparison is None else comparison.check

    def __call__(self, data: bytes) -> None:
        self._check(data)
        self._left -= 1
        if self._left <= 0 or time.monotonic() >= self._end:
            self._finish()

    def _finish(self) -> None:
        # libFuzzer would end the process without Python's end, and so without the report.
        report = "" if self._comparison is None else self._comparison.report()
        seconds = time.monotonic() - self._began
        sys.stderr.write(f"\n{report}{self._count - self._left:,} inputs in {seconds:.0f} s, and nothing was found\n")
        sys.stderr.flush()
        os._exit(0)


def main(arguments: list[str]) -> None:
    """Fuzz until the run ends the process itself."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs to try (default 1,000,000)")
    parser.add_argument("--seconds", type=float, default=300.0, help="to stop after (default 300)")
    parser.add_argument(
        "--compare", action="store_true", help="also ask two other parsers, and explain each difference"
    )
    options = parser.parse_args(arguments)
    run = Run(options.count, options.seconds, Comparison() if options.compare else None)
    corpus, dictionary = seeds.write(FOLDER)
    flags = ["-max_len=4200", "-timeout=10", f"-dict={dictionary}", f"-artifact_prefix={FOLDER}/", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], run)
    atheris.Fuzz()


main(sys.argv[1:])
