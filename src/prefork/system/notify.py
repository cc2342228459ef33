"""Notify the service manager: datagrams to the socket that NOTIFY_SOCKET names (sd_notify(3)).

The callers decide what is sent, and when. A manager that does not listen costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


class Notifier:
    """Sends states to the service manager, if there is one.

    Removes the manager's variables from the environment: otherwise programs that a service starts could speak for it.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        usec, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        for_us = pid in ("", str(os.getpid()))
        self.watchdog = int(usec) / 1e6 if self._address and usec.isdigit() and int(usec) and for_us else None
        """Seconds within which the manager expects a keep-alive ping; None if it expects none."""
        self.variables = {"NOTIFY_SOCKET": address} if address else {}
        """The manager's variables, for a successor that also speaks for the service."""
        if self.watchdog is not None:
            self.variables["WATCHDOG_USEC"] = usec

    def send(self, **states: str | int) -> None:
        """Send states, as in `send(READY=1, STATUS="...")`. Never wait, never raise."""
        if self._address:
            text = "\n".join(f"{name}={value}" for name, value in states.items())
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode(), self._address)


def monotonic_usec() -> int:
    """Return the time stamp that RELOADING=1 requires (sd_notify(3), MONOTONIC_USEC)."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
