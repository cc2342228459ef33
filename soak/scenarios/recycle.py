"""Workers that have served a number of connections are replaced, one after the other, under load; nothing is lost."""

from __future__ import annotations

import time

from .. import kernel, tally
from ..report import Row, absent, zero
from ..scenario import Context, hear, loaded
from ..servers import has_option, serving

WORKERS = 4
CONNECTIONS = 200_000
EACH = 1000
OPTION = "--max-connections-served"


def run(context: Context) -> list[Row]:
    """Make connections, and count the replacements that they cause."""
    if not has_option(OPTION):
        return [absent("recycle", f"workers replaced every {EACH:,} connections", f"option {OPTION}")]
    wanted = context.count(CONNECTIONS, 200)
    # A small run has to see replacements as well.
    each = min(EACH, max(20, wanted // 20))
    with serving("soak.services.counted:service", OPTION, str(each), workers=WORKERS, unix=True) as fleet:
        before = kernel.read()
        with loaded(context, [(1.0, target) for target in fleet.targets()], 2.0) as load:
            while load.attempts < wanted:
                time.sleep(0.05)
            ledger, held = load.stop()
        testimony = hear(ledger, [fleet], before)
        replaced = len(tally.read(fleet.tallies)) - WORKERS
    what = f"W={WORKERS}, plain (tcp, unix), a worker replaced every {each:,} connections"
    details = [f"{replaced} workers replaced, {held} attempts held back", *testimony.all]
    # One slot after the other, and a worker looks at itself now and then: it serves more than it was told to.
    sound = testimony.agree and replaced >= ledger.attempts / each / 4
    return [zero("recycle", what, ledger.lost, ledger.attempts, "connections", details, sound)]
