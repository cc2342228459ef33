"""Options that the commands of this harness have in common, so that they mean the same in each.

What a command measures, and its own options, belong to its `__main__.py`.
"""

from __future__ import annotations

import argparse


def add_common(parser: argparse.ArgumentParser, rate: float, document: str) -> None:
    """Add the size of a run, its load, and what becomes of the result, which `--write` puts into `document`."""
    parser.add_argument("--scale", type=_positive, default=1.0, metavar="F", help="multiply every count (default: 1)")
    parser.add_argument("--rate", type=_positive, default=rate, metavar="N", help=f"connections a second ({rate:g})")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of all dice (1)")
    parser.add_argument("--stay", type=_positive, default=4.0, metavar="S", help="of long and idle connections (4)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--write", action="store_true", help=f"put the result into {document}")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be more than 0")
    return value
