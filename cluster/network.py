"""The network: a bridge in this namespace, and nodes, each a namespace of its own on a wire to the bridge.

Knows nothing of what runs on the nodes. Nothing of it has a name outside: a namespace lives as long as a process in it,
and every process here dies with the harness, however that ends.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from soak import proc
from soak.errors import HarnessError

BRIDGE = "switch"
#: How many bits of an address are the network's.
BITS = 24


@dataclass(frozen=True, slots=True)
class Node:
    """A machine on the network. Made by `Network.node`."""

    name: str
    address: str
    prefix: tuple[str, ...]
    """What goes before a command that is to run on it."""

    def cut(self) -> None:
        """Take its wire out of the bridge: every packet is lost from now on, and neither end is told."""
        _ip("link", "set", self.name, "nomaster")

    def mend(self) -> None:
        """Put its wire back into the bridge."""
        _ip("link", "set", self.name, "master", BRIDGE)

    def start(self, command: Sequence[str], log: IO[bytes], **more: Any) -> Program:
        """Start a command on it, which writes its output to `log`; `more` is for `subprocess.Popen`."""
        contained = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        process = subprocess.Popen(
            [*self.prefix, *contained, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A Ctrl-C is the harness's, which has to end them in order.
            start_new_session=True,
            **more,
        )
        return Program(process)


class Program:
    """A command in a PID namespace of its own: the first process there, and everything that it has started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        try:
            proc.wait_until(self._contained, 10, f"a PID namespace for {process.args!r}")
        except HarnessError:
            process.kill()
            process.wait()
            raise
        self._first = proc.children(process.pid)[0]
        self._namespace = _namespace(self._first)

    def _contained(self) -> bool:
        found = proc.children(self._process.pid)
        return bool(found) and _namespace(found[0]) not in ("", _namespace(self._process.pid))

    def members(self) -> list[int]:
        """Return the PIDs of all its living processes."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if _namespace(pid) == self._namespace and proc.alive(pid)]

    def outside(self, pid: int) -> int:
        """Return the PID here of what is `pid` there. Raises HarnessError if there is no such process."""
        for member in self.members():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{member}/status").read_text()
                if next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1] == str(pid):
                    return member
        raise HarnessError(f"no process {pid} in the namespace of {self._first}")

    def kill(self) -> None:
        """Kill all of it at once, because a PID namespace dies with its first process. May be repeated."""
        proc.kill(self._first)
        self._process.kill()
        self._process.wait(10)
        proc.wait_until(lambda: not self.members(), 10, f"the end of the namespace of {self._first}")


class Network:
    """The bridge and its nodes. Made by `network`."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def node(self, name: str, address: str) -> Node:
        """Make a node; its wire's end at the bridge has its name. Raises HarnessError."""
        # It ends by itself when the harness is gone, because its standard input does.
        anchor = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self._stack.callback(_let_go, anchor)
        ours = Path("/proc/self/ns/net").readlink()
        theirs = Path(f"/proc/{anchor.pid}/ns/net")
        proc.wait_until(lambda: theirs.readlink() != ours, 10, f"a network namespace for {name}")
        prefix = ("nsenter", f"--net={theirs}")
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(anchor.pid))
        _ip("link", "set", name, "master", BRIDGE, "up")
        for words in (
            ("addr", "add", f"{address}/{BITS}", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip(*words, prefix=prefix)
        return Node(name, address, prefix)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Make a bridge in this namespace; in the end it is gone, and the nodes with it. Raises HarnessError."""
    _ip("link", "add", BRIDGE, "type", "bridge")
    with contextlib.ExitStack() as stack:
        stack.callback(_ip, "link", "del", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield Network(stack)


def _let_go(anchor: subprocess.Popen[bytes]) -> None:
    anchor.kill()
    anchor.wait()
    assert anchor.stdin is not None
    anchor.stdin.close()


def _namespace(pid: int) -> str:
    """Return the name of the PID namespace of a process, or "" if there is no such process."""
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""


def _ip(*words: str, prefix: Sequence[str] = ()) -> None:
    done = subprocess.run([*prefix, "ip", *words], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise HarnessError(f"ip {' '.join(words)}: {done.stderr.strip() or done.returncode}")
