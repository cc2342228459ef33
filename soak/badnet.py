"""A bad network: two namespaces, and a process between them that delays, loses, doubles, reorders and damages packets.

By TUN devices (Documentation/networking/tuntap.rst of the kernel), because not every kernel has netem. `bad_network`
starts the process, which is `python -m soak.badnet`. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import HarnessError
from .load import ROOT

#: Addresses of the ends: ours, and that of the far namespace.
NEAR, FAR = "10.99.0.1", "10.99.0.2"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_IP_HEADER = 20
_LARGEST_PACKET = 65536
#: How long a packet that is to be reordered waits for others to overtake it, beside its delay.
_OVERTAKEN = 0.02


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to a packet, in either direction: seconds, and probabilities."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.delay * 1000:g} ± {self.jitter * 1000:g} ms each way, {self.loss:.1%} lost, {self.reorder:.1%} "
            f"reordered, {self.duplicate:.1%} doubled, {self.corrupt:.1%} damaged"
        )


@dataclass(frozen=True, slots=True)
class Network:
    """`prefix` is for a command that is to run at the far end."""

    prefix: tuple[str, ...]
    _process: subprocess.Popen[str]

    def cut(self) -> None:
        """Drop every packet from now on, without telling either side."""
        self._order("cut")

    def mend(self) -> None:
        """Undo `cut`. What was dropped stays lost."""
        self._order("mend")

    def _order(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()


@contextlib.contextmanager
def bad_network(faults: Faults, seed: int = 1) -> Iterator[Network]:
    """From this namespace (`NEAR`) to another one (`FAR`); both ends are gone afterwards. Raises HarnessError."""
    process = subprocess.Popen(
        [sys.executable, "-m", "soak.badnet", json.dumps(dataclasses.asdict(faults)), str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise HarnessError(f"there is no bad network (exit status {process.wait(10)}); its error is above")
        yield Network(("nsenter", f"--net=/proc/{process.pid}/ns/net"), process)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


# --- the process ------------------------------------------------------------------------------------------------------


class _Relay:
    """Carries packets between two TUN devices, each when it is due."""

    def __init__(self, near: int, far: int, faults: Faults, seed: int) -> None:
        self._other = {near: far, far: near}
        self._faults = faults
        self._dice = random.Random(seed)
        self._due: list[tuple[float, int, int, bytes]] = []
        self._number = 0
        self._cut = False

    def run(self) -> None:
        """Forward packets until standard input ends."""
        poll = select.poll()
        for fd in (0, *self._other):
            poll.register(fd, select.POLLIN)
        while True:
            wait = 1.0 if not self._due else self._due[0][0] - time.monotonic()
            for fd, _ in poll.poll(max(0.0, wait) * 1000):
                if fd:
                    self._take(fd)
                elif order := os.read(0, 100):
                    self._cut = order == b"cut\n"
                else:
                    return
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                _, _, fd, packet = heapq.heappop(self._due)
                # A device that has no room loses it, as devices do.
                with contextlib.suppress(OSError):
                    os.write(fd, packet)

    def _take(self, fd: int) -> None:
        faults, dice = self._faults, self._dice
        with contextlib.suppress(BlockingIOError):
            while packet := os.read(fd, _LARGEST_PACKET):
                if self._cut or dice.random() < faults.loss:
                    continue
                self._later(fd, packet)
                if dice.random() < faults.duplicate:
                    self._later(fd, packet)

    def _later(self, fd: int, packet: bytes) -> None:
        faults, dice = self._faults, self._dice
        seconds = faults.delay + dice.uniform(-faults.jitter, faults.jitter)
        if dice.random() < faults.reorder:
            seconds += _OVERTAKEN
        if dice.random() < faults.corrupt and len(packet) > _IP_HEADER:
            # Not in the header of IP: a checksum of 16 bits finds every damage of one bit, so TCP has to.
            damaged = bytearray(packet)
            damaged[dice.randrange(_IP_HEADER, len(packet))] ^= 1 << dice.randrange(8)
            packet = bytes(damaged)
        self._number += 1
        heapq.heappush(self._due, (time.monotonic() + seconds, self._number, self._other[fd], packet))


def _open_device(name: str, address: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    for words in (("addr", "add", f"{address}/24", "dev", name), ("link", "set", name, "up")):
        subprocess.run(["ip", *words], check=True)
    return fd


def main(faults: str, seed: str) -> None:
    """Be the process: a device here, one in a namespace of our own, and packets in between."""
    near = _open_device("near", NEAR)
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    far = _open_device("far", FAR)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    _Relay(near, far, Faults(**json.loads(faults)), int(seed)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
