"""The command: `python -m fuzz --count N --seconds S [--compare]`. It ends with status 0 if nothing was found.

Needs the dependency group `fuzz`, which `make fuzz` installs in an environment of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["prefork.core", "prefork.net.proxy_out"]):
    from . import properties, seeds
    from .differences import Comparison


def main(arguments: list[str]) -> None:
    """Fuzz until the count or the time is reached; libFuzzer then ends the process."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs to try (default 1,000,000)")
    parser.add_argument("--seconds", type=int, default=300, help="to stop after (default 300)")
    parser.add_argument(
        "--compare", action="store_true", help="also ask two other parsers, and explain each difference"
    )
    options = parser.parse_args(arguments)
    check: Callable[[bytes], None] = Comparison().check if options.compare else properties.check
    with tempfile.TemporaryDirectory() as folder:
        corpus, dictionary = seeds.write(Path(folder))
        limits = [f"-runs={options.count}", f"-max_total_time={options.seconds}", "-max_len=4200", "-timeout=10"]
        atheris.Setup([sys.argv[0], *limits, f"-dict={dictionary}", "-print_final_stats=1", str(corpus)], check)
        atheris.Fuzz()


main(sys.argv[1:])
