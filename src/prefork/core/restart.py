"""When a worker that died is replaced: at once if it had been serving, later and later if it keeps dying.

Pure: what happened and a throw of the dice go in, the delay comes out. Which worker is meant is the roster's business.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """Seconds and counts. With these values a slot whose worker always dies is forked at most 8 times in a minute."""

    stable_after: float = 10.0
    """A worker that served so long had recovered: its death starts a new count."""
    immediate: int = 3
    """So many deaths in a row are answered at once, if the worker had become ready."""
    first_delay: float = 0.5
    ceiling: float = 30.0
    jitter: float = 0.1
    """The delay is up to this part longer, so that workers that died together do not start together."""
    patience: int = 5
    """Deaths in a row after which a slot counts as hopeless."""


@dataclass(frozen=True, slots=True)
class History:
    """What a slot remembers of its workers' deaths."""

    failures: int = 0
    """Deaths in a row, none of a worker that had been stable."""
    delay: float = 0.0
    """Seconds from the last death to the replacement."""


def after_death(history: History, served: float | None, dice: float, policy: Policy) -> History:
    """The history with one more death: of a worker that had been ready for `served` seconds, None if never.

    `dice` is a random number from 0 to 1. While failures go on the delay never shrinks.
    """
    if served is not None and served >= policy.stable_after:
        return History()
    failures = history.failures + 1
    if served is not None and failures <= policy.immediate:
        return History(failures, history.delay)
    delay = min(policy.first_delay * 2.0 ** min(failures - 1, 60), policy.ceiling) * (1 + policy.jitter * dice)
    return History(failures, max(history.delay, delay))
