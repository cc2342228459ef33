"""Find a running server's control socket and send it one request: the blocking client of `prefork status` and others.

The supervisor serves it (`parent/control_server.py`). The messages are in `core/control_protocol.py`.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import ConfigError, NotRunningError, ServiceError, reason_of
from ..text import escape_controls
from .paths import resolve
from .unix_sockets import connect, remove_stale_socket

#: Longest reply that is read, in bytes.
MAX_REPLY = 16 * 1024 * 1024
#: Seconds without a line until a server that has told its progress is given up.
PROGRESS_TIMEOUT = 10.0
#: Seconds that the end of a supervisor's process is waited for, after it has said that it has stopped.
END_TIMEOUT = 5.0
#: Descriptors that can come with one message (unix(7), SCM_MAX_FD).
MAX_DESCRIPTORS = 253
#: Pid, uid and gid of a process (unix(7), struct ucred).
_CREDENTIALS = struct.Struct("=iII")


def socket_directory() -> Path:
    """Return the private directory of this user for control sockets without a path of their own.

    `$XDG_RUNTIME_DIR/prefork`, or `prefork-UID` in `$TMPDIR` or /tmp.
    """
    runtime, temporary = (os.environ.get(name, "") for name in ("XDG_RUNTIME_DIR", "TMPDIR"))
    if os.path.isabs(runtime):
        return Path(runtime) / "prefork"
    # Not tempfile.gettempdir(), which follows links and makes a file in the directory to test it.
    return Path(temporary if os.path.isabs(temporary) else "/tmp") / f"prefork-{os.geteuid()}"


def make_socket_directory() -> Path:
    """Return `socket_directory()`, made if it is missing.

    Raises OSError if it cannot be made, has another owner, or is open to other users. In a temporary directory any user
    may have made it first.
    """
    path = socket_directory()
    _require_private(path, make=True)
    return path


def _require_private(path: Path, make: bool = False) -> None:
    try:
        with resolve(path) as entry:
            with contextlib.suppress(FileExistsError):
                if make:
                    entry.mkdir(0o700)
            found = entry.stat()
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, str(path)) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise OSError(errno.EPERM, "not a directory that only this user can open", str(path))


def may_control(sock: socket.socket) -> bool:
    """Return whether the peer of a unix socket is root or this process's user (SO_PEERCRED, unix(7)).

    The server checks its clients, and a client checks the server.
    """
    uid = _peer_uid(sock)
    return uid is None or uid in (0, os.geteuid())


def _peer_uid(sock: socket.socket) -> int | None:
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    uid: int = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
    return uid


def find_sockets() -> list[str]:
    """Return the control sockets of the running servers in `socket_directory()`, and remove those that were left.

    Raises NotRunningError if there is none, and ConfigError if another user could have put a socket there.
    """
    directory = socket_directory()
    where = escape_controls(directory)
    try:
        _require_private(directory)
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise ConfigError(f"{where}: {reason_of(exc)}; name the socket by --control PATH") from None
    living = [path for path in sorted(map(str, directory.glob("*.sock"))) if remove_stale_socket(path)]
    if not living:
        raise NotRunningError(f"no running prefork found (looked in {where}); name its socket by --control PATH")
    return living


def request(
    path: str,
    message: bytes,
    timeout: float,
    descriptors: list[int] | None = None,
    on_progress: Callable[[bytes], bool] = lambda line: False,
    until_end: bool = False,
) -> bytes:
    """Send `message` and return the line that answers it.

    The descriptors that come with it are added to `descriptors`, also on an error; the caller owns them.
    `on_progress` is called with each line, and returns whether others follow. From then on PROGRESS_TIMEOUT holds for
    each. `until_end` waits up to END_TIMEOUT seconds for the end of the process that has answered.

    Raises NotRunningError if no server listens there, ServiceError if the line does not arrive within `timeout`
    seconds, and ConfigError if it cannot be asked.
    """
    option = f"--control {escape_controls(path)}"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout)
        try:
            _request_credentials(sock)
            _connect(sock, path, time.monotonic() + timeout)
            if not may_control(sock):
                # In a directory of the workers' user, a worker can put a socket of its own in the server's place.
                raise ConfigError(f"{option}: uid {_peer_uid(sock)} listens there, which is not root")
            sock.sendall(message)
            reader = _Reader(sock, descriptors)
            while on_progress(line := reader.line()):
                timeout = PROGRESS_TIMEOUT
                sock.settimeout(timeout)
            if until_end:
                _await_end(reader.sender)
            return line
        except TimeoutError:
            raise ServiceError(f"{option}: no answer within {timeout:g} s") from None
        except (ConnectionRefusedError, FileNotFoundError) as exc:
            raise NotRunningError(f"{option}: {reason_of(exc)} (no server listens there)") from None
        except OSError as exc:
            raise ConfigError(f"{option}: {reason_of(exc)}") from exc


def _request_credentials(sock: socket.socket) -> None:
    """Have the kernel attach the sender's credentials to each message (unix(7), SCM_CREDENTIALS).

    SO_PEERCRED names the process that called listen(2): root, even if a worker answers on a socket of the service.
    """
    if hasattr(socket, "SO_PASSCRED"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def _connect(sock: socket.socket, path: str, deadline: float) -> None:
    """Retry while the queue is full: a unix socket then refuses with EAGAIN, and cannot be polled for a free place."""
    while True:
        try:
            connect(sock, path)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(0.05)


def _await_end(pid: int) -> None:
    """Wait for the end of a process, of which 0 stands for one that this process cannot see."""
    if pid <= 0 or not hasattr(os, "pidfd_open"):
        return
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        # It is gone already.
        return
    try:
        watch = select.poll()
        watch.register(fd, select.POLLIN)
        watch.poll(END_TIMEOUT * 1000)
    finally:
        os.close(fd)


class _Reader:
    """Reads lines, and checks which user has sent them."""

    def __init__(self, sock: socket.socket, descriptors: list[int] | None) -> None:
        self._sock = sock
        self._descriptors = descriptors
        self._received = bytearray()
        self.sender = 0
        """The pid of the process that has sent the last bytes."""

    def line(self) -> bytes:
        """Return the next line. Raises OSError if the connection ends before, or another user than root answers."""
        # Without room for descriptors the kernel installs none (unix(7), MSG_CTRUNC).
        room = 0 if self._descriptors is None else socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
        flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        while b"\n" not in self._received:
            data, ancillary, _, _ = self._sock.recvmsg(65536, socket.CMSG_SPACE(_CREDENTIALS.size) + room, flags)
            if self._descriptors is not None:
                self._descriptors += _descriptors_in(ancillary)
            if data:
                self._require_sender(ancillary)
            if not data or len(self._received) > MAX_REPLY:
                raise OSError(errno.ECONNRESET, "the server closed the connection")
            self._received += data
        line, _, rest = self._received.partition(b"\n")
        self._received = rest
        return bytes(line) + b"\n"

    def _require_sender(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, getattr(socket, "SCM_CREDENTIALS", None)):
                self.sender, uid, _ = _CREDENTIALS.unpack(data)
                if uid not in (0, os.geteuid()):
                    raise OSError(errno.EPERM, f"uid {uid} answers there, which is not root")


def _descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()
