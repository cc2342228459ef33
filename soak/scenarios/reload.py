"""Reloads under load: the headline. Two servers, one plain on TCP and a unix socket and one with TLS, and one load."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .. import kernel, tally
from ..ledger import Ledger
from ..load import Clients
from ..report import Row, zero
from ..scenario import Context, hear, loaded
from ..servers import Fleet, reload, serving

SERVICE = "soak.services.counted:service"
WORKERS = 4
CONNECTIONS = 1_000_000
RELOADS = 200
#: Parts of the load.
TCP, UNIX, TLS = 0.70, 0.22, 0.08


def run(context: Context) -> list[Row]:
    """Reload both servers, by signal and by the control socket in turn, while connections are made all the time."""
    return measure(context, "reload", context.count(CONNECTIONS, 200), context.count(RELOADS, 2))


def measure(context: Context, name: str, wanted: int, reloads: int, *options: str) -> list[Row]:
    """Make at least `wanted` connections and `reloads` reloads, of servers with these options."""
    with (
        serving(SERVICE, *options, workers=WORKERS, unix=True) as plain,
        serving(SERVICE, *options, workers=WORKERS, certificates=context.certificates()) as secure,
    ):
        tcp, unix = plain.targets()
        fleets = (plain, secure)
        before = kernel.read()
        begun = time.monotonic()
        with loaded(context, [(TCP, tcp), (UNIX, unix), (TLS, secure.targets()[0])]) as load:
            failed = _reload_on_and_on(context, fleets, load, wanted, reloads)
            ledger, held = load.stop()
        seconds = time.monotonic() - begun
        testimony = hear(ledger, fleets, before)
        workers = sum(len(tally.read(fleet.tallies)) for fleet in fleets)
    details = [
        f"{ledger.attempts / seconds:.0f} connections a second for {seconds:.0f} s, {held} held back; "
        f"{workers} workers in all; {_by_kind(ledger)}",
        *(f"a reload failed: {each}" for each in failed),
        *testimony.all,
    ]
    what = " ".join([f"W={WORKERS}, plain (tcp, unix) and TLS, {reloads} reloads of each", *options])
    sound = testimony.agree and not failed and ledger.attempts >= wanted
    return [zero(name, what, ledger.lost, ledger.attempts, "connections", details, sound)]


def _reload_on_and_on(context: Context, fleets: Sequence[Fleet], load: Clients, wanted: int, reloads: int) -> list[str]:
    """Reload each server `reloads` times, spread evenly over the load; return the errors of failed ones."""
    failed: list[str] = []
    done = 0
    while True:
        attempts = load.attempts
        if done >= reloads and attempts >= wanted:
            return failed
        if done < reloads and attempts >= wanted * done / reloads:
            for fleet in fleets:
                trouble = reload(fleet, by_signal=done % 2 == 0)
                failed += [trouble] if trouble else []
            done += 1
            if done % max(1, reloads // 10) == 0:
                context.say(f"reload: {done} reloads, {attempts:,} connections")
        else:
            time.sleep(0.01)


def _by_kind(ledger: Ledger) -> str:
    return ", ".join(f"{counts.total():,} {kind}" for kind, counts in sorted(ledger.kinds.items()))
