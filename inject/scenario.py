"""One run: a server is started, used, reloaded, upgraded and stopped while one of its system calls fails.

Only effects: this module collects what can be seen, and `verdict.py` judges it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from soak.errors import HarnessError
from soak.ledger import Bin

from . import client
from .cases import Case, Role
from .hook.sitecustomize import GO
from .verdict import Observed

ROOT = Path(__file__).parents[1]
#: Seconds for each step of a run; twice as many for an upgrade.
DEADLINE = 20.0
#: Connections while the fault may happen, and after it.
EARLY, LATE = 50, 10
PORT = 9000
_SERVICES = {Role.PROTOCOL: "inject.services.protocol:Echo"}
_READY = re.compile(r"\bready: \d")
_RELOADED = re.compile(r"reloaded: |reload failed|not reloading|reload: ")
_UPGRADED = re.compile(r"upgraded: supervisor (\d+)|took over from|upgrade failed|not upgrading")
#: What is traced to count the calls.
ALL = "all"


class Run:
    """One server and one tracer, in a folder of its own, on an address of its own. `number` is unique while it runs."""

    def __init__(self, role: Role | None, fault: Case | None, number: int, deadline: float = DEADLINE) -> None:
        self._role = role
        self._fault = fault
        self._deadline = deadline
        self._host = f"127.{os.getpid() % 200 + 20}.{number // 250 % 250}.{number % 250 + 1}"
        self._hangs: list[str] = []
        self._tracer: subprocess.Popen[bytes] | None = None

    def observe(self) -> tuple[Observed, list[str]]:
        """What was seen, and the trace. Raises HarnessError where nothing can be traced."""
        with tempfile.TemporaryDirectory(prefix="inject-") as folder:
            self._folder = Path(folder)
            self._here = self._folder / "here"
            self._here.mkdir()
            self._mark = f"INJECT_RUN={folder}"
            self._log = self._folder / "log"
            with self._log.open("wb") as log:
                try:
                    return self._observe(log.fileno()), self._trace()
                finally:
                    self._kill_all()

    def _observe(self, log: int) -> Observed:
        self._start(log)
        early: Counter[Bin] = Counter()
        late: Counter[Bin] = Counter()
        stopped = False
        if self._steps(early, late):
            stopped = True
            self._stop()
        status = self._status()
        orphans = [pid for pid in self._members() if not _ends(pid)]
        return Observed(
            injected=any("(INJECTED)" in line for line in self._trace()),
            stopped=stopped,
            status=status,
            stderr=self._said(),
            hangs=tuple(self._hangs),
            early=early,
            late=late,
            excused=self._role in (Role.WORKER, Role.PROTOCOL, None),
            orphans=orphans,
            files=[] if self._explains_a_file() else sorted(path.name for path in self._here.iterdir()),
        )

    def _steps(self, early: Counter[Bin], late: Counter[Bin]) -> bool:
        """Whether it is there to the last of them."""
        if not self._wait("start", self._is_ready) or self._ended():
            return False
        early.update(client.converse(self._host, PORT, EARLY))
        if not self._ask("reload", _RELOADED):
            return False
        if self._role in (Role.SUCCESSOR, Role.PREDECESSOR):
            self._prepare_upgrade()
            if not self._ask("upgrade", _UPGRADED):
                return False
        late.update(client.converse(self._host, PORT, LATE))
        return not self._ended()

    # --- the server ---------------------------------------------------------------------------------------------------

    def _start(self, log: int) -> None:
        if self._role in (Role.WORKER, Role.PROTOCOL):
            self._catch.touch()
        self._ready, told = os.pipe()
        os.set_blocking(self._ready, False)
        self._heard = b""
        prefix = self._strace() if self._role is Role.SUPERVISOR else []
        try:
            self._process = subprocess.Popen(
                [*prefix, *self._command(told)],
                cwd=self._here,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(told,),
                start_new_session=True,
            )
        finally:
            os.close(told)
        self._successor: int | None = None
        if self._role in (Role.WORKER, Role.PROTOCOL):
            self._attach_to_caught()

    def _command(self, told: int) -> list[str]:
        if self._role is None:
            return [sys.executable, "-m", "inject.services.bad", self._host, str(PORT)]
        target = _SERVICES.get(self._role, "inject.services.streams:handle")
        options = ["-w", "2", "--bind", f"{self._host}:{PORT}", "--bind", "unix:s", "--pidfile", "pid"]
        options += ["--control", "control", "--ready-fd", str(told), "--boot-timeout", "15"]
        options += ["--drain-timeout", "5", "--reload-drain-timeout", "5"]
        return [sys.executable, "-m", "prefork", "serve", target, *options]

    def _environment(self) -> dict[str, str]:
        name, _, value = self._mark.partition("=")
        path = os.pathsep.join(map(str, (ROOT / "inject" / "hook", ROOT / "src", ROOT)))
        return {
            **os.environ,
            name: value,
            "INJECT_CATCH": str(self._catch),
            "PYTHONPATH": path,
            # The same calls in each run.
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @property
    def _catch(self) -> Path:
        return self._folder / "catch"

    def _supervisor(self) -> int | None:
        """The one that serves now."""
        if self._successor is not None:
            return self._successor
        if self._process.poll() is not None:
            return None
        if self._role is not Role.SUPERVISOR:
            return self._process.pid
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def _is_ready(self) -> bool:
        # By either: the call that fails may be the one by which it says so.
        with contextlib.suppress(BlockingIOError):
            self._heard += os.read(self._ready, 16)
        return b"READY" in self._heard or bool(_READY.search(self._said())) or self._ended()

    def _ended(self) -> bool:
        return not _lives(self._successor) if self._successor is not None else self._process.poll() is not None

    def _said(self) -> str:
        return self._log.read_text(errors="replace")

    def _explains_a_file(self) -> bool:
        """Whether the fault itself explains it: the removal of the file fails, or its lock is another's."""
        fault = self._fault
        return fault is not None and (
            fault.call in ("unlink", "unlinkat") or (fault.call, fault.error) == ("flock", "EAGAIN")
        )

    # --- what is asked of it ------------------------------------------------------------------------------------------

    def _ask(self, word: str, outcome: re.Pattern[str]) -> bool:
        """Ask on the control socket, by a signal where that does not answer; False if it ends instead."""
        begun = len(self._said())
        number = signal.SIGHUP if word == "reload" else signal.SIGUSR2
        heard = bytearray()
        broken: list[bool] = []
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.settimeout(2)
                sock.connect(str(self._here / "control"))
                sock.sendall(json.dumps({"command": word}).encode() + b"\n")
            except OSError:
                broken.append(True)
                self._signal(number)

            def known() -> bool:
                if outcome.search(self._said()[begun:]) or self._gone():
                    return True
                if not broken and _ended(sock, heard):
                    # The call that fails may be one of this conversation: then it is asked for once more.
                    broken.append(not heard.endswith(b"\n"))
                    if broken[0]:
                        self._signal(number)
                return broken == [False]

            if word == "upgrade" and self._role is Role.SUCCESSOR:
                self._attach_to_caught()
            # Python's start is traced, too, where the successor's calls fail: that takes its time.
            done = self._wait(word, known, 2 * self._deadline if word == "upgrade" else self._deadline)
        if done and word == "upgrade":
            self._follow(bytes(heard))
        return done and not self._ended()

    def _follow(self, heard: bytes) -> None:
        """Find the supervisor that serves now."""
        text = self._said()
        found = re.search(r"upgraded: supervisor (\d+)|supervisor\[(\d+)\]: took over", text)
        if found:
            self._successor = int(found[1] or found[2])
        else:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                answer = json.loads(heard)
                self._successor = int(answer["pid"]) if answer.get("ok") else None

    def _gone(self) -> bool:
        return self._process.poll() is not None and self._role not in (Role.SUCCESSOR, Role.PREDECESSOR)

    def _signal(self, number: int) -> None:
        pid = self._supervisor()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _stop(self) -> None:
        self._signal(signal.SIGTERM)
        self._wait("stop", self._all_ended)

    def _all_ended(self) -> bool:
        return self._ended() and self._process.poll() is not None

    def _status(self) -> int | None:
        """Of the supervisor that served last; the harness is the reaper of those that have lost their parent."""
        if not self._all_ended() and (self._hangs or not self._wait("end", self._all_ended)):
            return None
        if self._successor is None:
            return self._process.returncode
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(self._successor, os.WNOHANG)
            return os.waitstatus_to_exitcode(status)
        return 0

    # --- the tracer ---------------------------------------------------------------------------------------------------

    def _strace(self) -> list[str]:
        fault = self._fault
        words = ["strace", "-qq", "-o", str(self._folder / "trace"), "-e", "signal=none", "-s", "200"]
        if fault is None:
            return [*words, "-e", f"trace={ALL}"]
        return [
            *(*words, "-e", f"trace={fault.call}"),
            *("-e", f"inject={fault.call}:error={fault.error}:when={fault.when}"),
        ]

    def _attach(self, pid: int) -> None:
        self._tracer = subprocess.Popen([*self._strace(), "-p", str(pid)], stderr=subprocess.DEVNULL)
        if not self._wait("attach", lambda: _traced(pid) or not _lives(pid)) or not _traced(pid):
            raise HarnessError(f"strace has not attached to process {pid}")

    def _attach_to_caught(self) -> None:
        caught = self._catch.with_name("catch.caught")
        if not self._wait("fork", lambda: caught.exists() or self._process.poll() is not None) or not caught.exists():
            raise HarnessError(f"no child was forked; the server said:\n{self._said()}")
        pid = int(caught.read_text())
        self._attach(pid)
        os.kill(pid, GO)

    def _prepare_upgrade(self) -> None:
        if self._role is Role.SUCCESSOR:
            self._catch.touch()
        else:
            self._attach(self._process.pid)

    def _trace(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / "trace").read_text(errors="replace").splitlines()
        return []

    # --- waiting, and the end -----------------------------------------------------------------------------------------

    def _wait(self, what: str, condition: Callable[[], bool], deadline: float = 0.0) -> bool:
        end = time.monotonic() + (deadline or self._deadline)
        while not condition():
            if time.monotonic() > end:
                self._hangs.append(what)
                return False
            time.sleep(0.01)
        return True

    def _members(self) -> Iterator[int]:
        """The living processes of this run, without the tracer."""
        mark = self._mark.encode()
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if mark in Path(f"/proc/{entry}/environ").read_bytes() and not _is_strace(int(entry)):
                        yield int(entry)

    def _kill_all(self) -> None:
        os.close(self._ready)
        if self._tracer is not None:
            self._tracer.kill()
            self._tracer.wait()
        for _ in range(100):
            members = list(self._members())
            if not members and self._process.poll() is not None:
                break
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.02)
        self._process.kill()
        self._process.wait()


def _ended(sock: socket.socket, heard: bytearray) -> bool:
    """Whether the conversation has ended; what was said goes to `heard`."""
    try:
        while select.select([sock], [], [], 0)[0]:
            data = sock.recv(65536)
            if not data:
                return True
            heard += data
    except OSError:
        return True
    return False


def _fields(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _lives(pid: int) -> bool:
    return bool(fields := _fields(pid)) and fields[0] not in "ZX"


def _ends(pid: int) -> bool:
    """Return whether it ends within a second, because a process that was signalled may still be on its way."""
    end = time.monotonic() + 1
    while _lives(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not _lives(pid)


def _is_strace(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() == "strace"


def _traced(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    return False
