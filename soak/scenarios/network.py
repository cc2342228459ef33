"""Clients behind a bad network: packets come late, twice, damaged or not at all, and every answer is right."""

from __future__ import annotations

import time

from .. import kernel
from ..attempt import Target
from ..badnet import NEAR, Faults, bad_network
from ..load import Mix, Plan, clients
from ..report import Row, zero
from ..scenario import Context, hear
from ..servers import serving

WORKERS = 2
SESSIONS = 10_000
#: Sessions a second. Each takes some seconds, so a few hundred are open.
RATE = 60.0
FAULTS = Faults(delay=0.2, jitter=0.05, loss=0.05, reorder=0.1, duplicate=0.02, corrupt=0.001)
#: Seconds. With 5 % of packets lost, a client may have to send 4 SYNs, and an answer takes long.
PATIENCE = 180.0


def run(context: Context) -> list[Row]:
    """The usual mix, plain and TLS."""
    wanted = context.count(SESSIONS, 60)
    authority = context.certificates().authority
    options = ("--handshake-timeout", "120", "--drain-timeout", "120")
    with (
        bad_network(FAULTS, context.seed) as network,
        serving("soak.services.counted:service", *options, workers=WORKERS, host=NEAR) as plain,
        serving(
            "soak.services.counted:service",
            *options,
            workers=WORKERS,
            host=NEAR,
            certificates=context.certificates(),
        ) as tls,
    ):
        before = kernel.read()
        targets = tuple((1.0, Target((NEAR, fleet.port), fleet.tls)) for fleet in (plain, tls))
        plan = Plan(
            targets,
            RATE,
            context.seed,
            Mix(stay=min(2.0, context.stay)),
            connect_timeout=PATIENCE,
            read_timeout=PATIENCE,
            authority=authority,
        )
        with clients([plan], network.prefix) as load:
            while load.attempts < wanted:
                time.sleep(0.05)
            ledger, held = load.stop(2 * PATIENCE)
        testimony = hear(ledger, [plain, tls], before)
    details = [f"{held} attempts held back", *testimony.all]
    return [
        zero(
            "network",
            f"sessions, plain and TLS, through {FAULTS}",
            ledger.lost,
            ledger.attempts,
            "sessions",
            details,
            testimony.agree,
        )
    ]
