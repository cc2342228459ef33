"""What the kernel counts of TCP in this network namespace: the third witness, which belongs to neither side.

Reads only /proc/net. `nstat -az` shows the same numbers under the same names.
"""

from __future__ import annotations

from pathlib import Path

#: Connections lost to a full queue or a lack of memory.
QUEUE = ("ListenOverflows", "ListenDrops", "TCPReqQFullDrop", "TCPBacklogDrop")
#: Connections that were reset because of how either side closed them.
ABORTS = ("TCPAbortOnClose", "TCPAbortOnData", "TCPAbortOnMemory", "TCPAbortOnTimeout", "TCPAbortOnLinger")
#: Connections made, from both ends, resets, and packets that were sent again.
MADE = ("ActiveOpens", "PassiveOpens", "AttemptFails", "EstabResets", "OutRsts", "RetransSegs")
SHOWN = (*QUEUE, *ABORTS, *MADE)

Counters = dict[str, int]


def parse(text: str) -> Counters:
    """The counters of a file like /proc/net/netstat: lines in pairs, names and numbers, each after a prefix."""
    found: Counters = {}
    lines = text.splitlines()
    for names, numbers in zip(lines[::2], lines[1::2], strict=True):
        found |= dict(zip(names.split()[1:], map(int, numbers.split()[1:]), strict=True))
    return found


def read() -> Counters:
    """Those of `SHOWN` that this kernel has."""
    lines = [line for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Tcp:")]
    found = parse(Path("/proc/net/netstat").read_text()) | parse("\n".join(lines))
    return {name: found[name] for name in SHOWN if name in found}


def since(before: Counters) -> Counters:
    """What has been counted since `before` was read."""
    return {name: value - before.get(name, 0) for name, value in read().items()}


def in_words(counters: Counters) -> str:
    """Return the counters that have moved, and in any case the two of the accept queue."""
    always = ("ListenOverflows", "ListenDrops")
    return ", ".join(f"{name} {value}" for name, value in counters.items() if value or name in always)


def queues(port: int) -> dict[int, int]:
    """How many connections wait to be accepted on each IPv4 listening socket of `port`, by the socket's inode."""
    found = {}
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = row.split()
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
            found[int(fields[9])] = int(fields[4].rpartition(":")[2], 16)
    return found


def queued(port: int) -> int:
    """The same for all of them together."""
    return sum(queues(port).values())
