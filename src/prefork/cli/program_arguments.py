"""Split the words after `prefork run` into its own options and the program, which has options of its own.

Pure. What an option means is in `options.py`, and what a program is in `program.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def split(words: Sequence[str], with_value: Collection[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the words that are options of `prefork run`, and those of the program, which begin with its name.

    The program begins after `--`, at `-m`, or at the first word that is neither an option nor the value of one.
    `with_value` are the options that take one.
    """
    own: list[str] = []
    left = list(words)
    while left:
        word = left[0]
        if word == "--":
            return own, tuple(left[1:])
        if word == "-m" or not word.startswith("-") or word == "-":
            break
        own.append(left.pop(0))
        if word in with_value and left:
            own.append(left.pop(0))
    return own, tuple(left)
