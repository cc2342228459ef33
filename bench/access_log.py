"""Count what a line of the access log costs: instructions of a short connection without one, and with both formats.

Needs valgrind; see instructions.py. With `--log FORMAT` this is the server that is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile

import prefork
from prefork.observe import access_log
from prefork.observe.access_log import AccessLog, json_format, text_format
from prefork.observe.output import Output

from .contestants.common import announce, listener, run
from .contestants.prefork_stream import echo
from .instructions import SECONDS, instructions

WORK = "connect, echo of 1 KiB, close"
FORMATS = {"text": text_format, "json": json_format}


async def serve(log: str) -> None:
    """Echo, with an access log in `log` format to a temporary file; "off" has none."""
    # By size only, as in a busy worker: under valgrind a timer would fire for each few lines, by chance.
    access_log.FLUSH_DELAY = SECONDS
    with tempfile.TemporaryFile() as file:
        async with prefork.TCPServer(echo) as server:
            if log != "off":
                loop = asyncio.get_running_loop()
                server.observers.on_ended = AccessLog(
                    loop, Output(file.fileno()), FORMATS[log](0), lambda _: None, lambda _: None
                )
            sock = listener()
            server.add_socket(sock)
            announce(sock)
            await server.serve_forever()


def measure() -> None:
    without = 0.0
    for log in ("off", *FORMATS):
        count = instructions(WORK, server=("bench.access_log", "--log", log))
        without = without or count
        print(f"{WORK}, access log {log}: {count:,.0f} instructions, {count / without - 1:+.1%}")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        measure()
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("--log", choices=["off", *FORMATS])
        parser.add_argument("--work")
        run(serve(parser.parse_args().log), "asyncio")
