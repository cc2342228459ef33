"""A flood of TLS handshakes: what those feel of it whose connections are established, beside asyncio's own server."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from ..load import ROOT
from ..prober import probing
from ..report import Row, Verdict, in_words, percentiles
from ..scenario import Context
from ..servers import Certificates, other, serving

SECONDS = 15.0
FLOODERS = 8
#: The 99th percentile under the flood, over that without one.
TARGET = 2.0


def run(context: Context) -> list[Row]:
    """One worker, on a processor of its own where there are two; the clients share the other one."""
    certificates = context.certificates()
    seconds = context.seconds(SECONDS, 3.0)
    processors = sorted(os.sched_getaffinity(0))
    with serving("soak.services.sharing:handle", workers=1, certificates=certificates) as fleet:
        os.sched_setaffinity(fleet.wait_ready(1)[0], processors[:1])
        ours = _measure(fleet.port, certificates, processors[-1:], seconds)
    with other("asyncio_tls", certificates.cert, certificates.key) as (pid, port):
        os.sched_setaffinity(pid, processors[:1])
        theirs = _measure(port, certificates, processors[-1:], seconds)
    (calm, flooded, rate), (their_calm, their_flooded, their_rate) = ours, theirs
    ratio = percentiles(flooded)["p99"] / percentiles(calm)["p99"]
    their_ratio = percentiles(their_flooded)["p99"] / percentiles(their_calm)["p99"]
    return [
        Row(
            "handshakes",
            f"{FLOODERS} clients do TLS 1.3 handshakes without end: p99 of an established connection's answers, over "
            "that of a calm server",
            f"{ratio:.1f}, at {rate:.0f} handshakes a second (asyncio: {their_ratio:.1f}, at {their_rate:.0f})",
            len(flooded),
            f"<= {TARGET:g}",
            Verdict.GOOD if ratio <= TARGET else Verdict.BAD,
            details=(
                f"calm: {in_words(calm)}; flooded: {in_words(flooded)}",
                f"asyncio's streams: calm: {in_words(their_calm)}; flooded: {in_words(their_flooded)}",
                f"means: {statistics.mean(calm) * 1e3:.2f} and {statistics.mean(flooded) * 1e3:.2f} ms; asyncio's "
                f"{statistics.mean(their_calm) * 1e3:.2f} and {statistics.mean(their_flooded) * 1e3:.2f} ms",
            ),
        )
    ]


def _measure(
    port: int, certificates: Certificates, processors: list[int], seconds: float
) -> tuple[list[float], list[float], float]:
    """Seconds of answers without and with a flood, and its handshakes a second."""
    with probing(port, certificates.authority, processors) as prober:
        time.sleep(seconds)
        calm = prober.stop()
    with probing(port, certificates.authority, processors) as prober:
        command = [sys.executable, "-m", "soak.scenarios.handshakes", str(port), certificates.authority, str(seconds)]
        done = subprocess.run(
            ["taskset", "-c", ",".join(map(str, processors)), *command],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        flooded = prober.stop()
    return calm, flooded, int(done.stdout) / seconds


def main(port: str, authority: str, seconds: str) -> None:
    """Be the flood; print how many handshakes were done."""
    import asyncio
    import ssl

    context = ssl.create_default_context(cafile=authority)
    done = 0

    async def flooder(end: float) -> None:
        nonlocal done
        while time.monotonic() < end:
            _, writer = await asyncio.open_connection("127.0.0.1", int(port), ssl=context, server_hostname="localhost")
            done += 1
            writer.transport.abort()

    async def flood() -> None:
        await asyncio.gather(*(flooder(time.monotonic() + float(seconds)) for _ in range(FLOODERS)))

    asyncio.run(flood())
    sys.stdout.write(str(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
