"""When a worker that died is replaced: at once if it had been serving, later and later if it keeps dying.

Pure: what happened and a throw of the dice go in, the delay comes out. Which worker is meant is the roster's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Policy:
    """Seconds and counts."""

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
    intensity: int = 10
    period: float = 60.0
    """Never more than `intensity` forks of a slot in any `period`, whatever its workers die of (OTP's supervisors bound
    restarts in the same way; a bound over a lifetime ends every long-lived program one day)."""


@dataclass(frozen=True, slots=True)
class History:
    """What a slot remembers of its workers' lives."""

    failures: int = 0
    """Deaths in a row, none of a worker that had been stable."""
    back_off: float = 0.0
    """Seconds from the last death to the replacement, unless the intensity asks for more."""
    forks: tuple[float, ...] = ()
    """When the last workers were forked, at most `intensity` of them."""


def after_fork(history: History, now: float, policy: Policy) -> History:
    """The history with one more fork."""
    return replace(history, forks=(*history.forks, now)[-policy.intensity :])


def after_death(history: History, served: float | None, dice: float, policy: Policy) -> History:
    """The history with one more death: of a worker that had been ready for `served` seconds, None if never.

    `dice` is a random number from 0 to 1. While failures go on the back-off never shrinks.
    """
    if served is not None and served >= policy.stable_after:
        return History(forks=history.forks)
    failures = history.failures + 1
    if served is not None and failures <= policy.immediate:
        return replace(history, failures=failures)
    delay = min(policy.first_delay * 2.0 ** min(failures - 1, 60), policy.ceiling) * (1 + policy.jitter * dice)
    return replace(history, failures=failures, back_off=max(history.back_off, delay))


def delay(history: History, now: float, policy: Policy) -> float:
    """Seconds from now, the moment of a death, until its replacement may be forked."""
    if len(history.forks) < policy.intensity:
        return history.back_off
    return max(history.back_off, history.forks[0] + policy.period - now)
