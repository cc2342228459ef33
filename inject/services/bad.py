"""A server that does wrong what the harness has to see. Not prefork. `python -m inject.services.bad HOST PORT`"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback


def main() -> None:
    """Answer with 50 % of what was asked, and leave a mess at the end."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(_end()))
    signal.signal(signal.SIGHUP, lambda number, frame: _say("reloaded: nothing"))
    listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=128)
    _say(f"listening on {sys.argv[1]}:{sys.argv[2]} (tcp)")
    _say("ready: 1 worker")
    while True:
        peer, _ = listener.accept()
        with peer:
            asked = bytearray()
            while data := peer.recv(65536):
                asked += data
            peer.sendall(asked[: len(asked) // 2])


def _end() -> int:
    open("left", "w").close()
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
    try:
        raise OSError("a call that fails")
    except OSError:
        traceback.print_exc()
    return 70


def _say(text: str) -> None:
    os.write(2, f"{text}\n".encode())


if __name__ == "__main__":
    main()
