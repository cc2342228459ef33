"""The service of `sharing` without fairness: whichever worker the kernel wakes accepts.

`python -m soak.services.plain WORKERS` prints its port, and serves until it is told to end. It is made of prefork's own
functions: the streams are the same, and only the choice of the worker differs.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import prefork

BACKLOG = 16384


async def _serve(sockets: list[socket.socket]) -> None:
    from . import sharing

    server = prefork.TCPServer(sharing.handle)
    server.add_sockets(sockets)
    await server.serve_forever()


def main(workers: int) -> None:
    """Bind, fork the workers, and serve in each."""
    sockets = prefork.bind_sockets(0, "127.0.0.1", backlog=BACKLOG)
    sys.stdout.write(f"{sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    prefork.fork_processes(workers)
    asyncio.run(_serve(sockets))


if __name__ == "__main__":
    main(int(sys.argv[1]))
