"""When to replace a worker that died: at once if it had been serving, with a growing delay if deaths go on.

Pure: what happened and a random number go in, the delay comes out. `roster.py` applies it to a slot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers of the restart policy, times in seconds."""

    stable_after: float = 10.0
    """A worker that had been ready this long was well: its death starts a new count of failures."""
    immediate: int = 3
    """Up to this many deaths in a row are answered at once, if the worker had become ready."""
    first_delay: float = 0.5
    max_delay: float = 30.0
    jitter: float = 0.1
    """The delay grows by up to this fraction, so that workers that died together do not start together."""
    max_failures: int = 5
    """Deaths in a row after which a slot is in a crash loop. The server gives up when all slots are, and no worker
    accepts."""
    intensity: int = 10
    period: float = 60.0
    """Never more than `intensity` forks of a slot in any `period`, whatever its workers die of. OTP's supervisors bound
    restarts in the same way; a bound over a lifetime would end every long-lived program one day."""


@dataclass(frozen=True, slots=True)
class History:
    """What a slot remembers of the deaths and forks of its workers."""

    failures: int = 0
    """Deaths in a row of workers that were not stable."""
    back_off: float = 0.0
    """Seconds from the last death to the replacement, unless the intensity asks for more."""
    forks: tuple[float, ...] = ()
    """The times of the last forks, at most `intensity` of them."""


def after_fork(history: History, now: float, policy: Policy) -> History:
    return replace(history, forks=(*history.forks, now)[-policy.intensity :])


def after_death(history: History, uptime: float | None, jitter_fraction: float, policy: Policy) -> History:
    """Return the history with one more death, of a worker that was ready for `uptime` seconds, None if never.

    `jitter_fraction` is a random number from 0 to 1. The back-off never shrinks while failures go on.
    """
    if uptime is not None and uptime >= policy.stable_after:
        return History(forks=history.forks)
    failures = history.failures + 1
    if uptime is not None and failures <= policy.immediate:
        return replace(history, failures=failures)
    doubled = min(policy.first_delay * 2.0 ** min(failures - 1, 60), policy.max_delay)
    back_off = doubled * (1 + policy.jitter * jitter_fraction)
    return replace(history, failures=failures, back_off=max(history.back_off, back_off))


def delay(history: History, now: float, policy: Policy) -> float:
    """Return the seconds from `now`, the time of a death, until the replacement may be forked."""
    if len(history.forks) < policy.intensity:
        return history.back_off
    return max(history.back_off, history.forks[0] + policy.period - now)
