"""Find a running server's control socket and send it one request: the blocking client of `prefork status` and others.

The supervisor serves it (`parent/control_server.py`). The messages are in `core/control_protocol.py`.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import stat
import struct
import time
from pathlib import Path

from ..errors import ConfigError, NotRunningError, ServiceError, reason_of
from ..text import escape_controls
from .paths import resolve
from .unix_sockets import connect, remove_stale_socket

#: Longest reply that is read, in bytes.
MAX_REPLY = 16 * 1024 * 1024
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


def request(path: str, message: bytes, timeout: float, descriptors: list[int] | None = None) -> bytes:
    """Send `message` and return the line that answers it.

    Raises NotRunningError if no server listens there, ServiceError if the line does not arrive within `timeout`
    seconds, and ConfigError if it cannot be asked.

    The descriptors that come with the answer are added to `descriptors`, also on an error. The caller owns them.
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
            return _read_line(sock, descriptors)
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


def _require_sender(ancillary: list[tuple[int, int, bytes]]) -> None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, getattr(socket, "SCM_CREDENTIALS", None)):
            uid = _CREDENTIALS.unpack(data)[1]
            if uid not in (0, os.geteuid()):
                raise OSError(errno.EPERM, f"uid {uid} answers there, which is not root")


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


def _read_line(sock: socket.socket, descriptors: list[int] | None) -> bytes:
    received = bytearray()
    # Without room for descriptors the kernel installs none (unix(7), MSG_CTRUNC).
    room = 0 if descriptors is None else socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    while not received.endswith(b"\n"):
        data, ancillary, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(_CREDENTIALS.size) + room, flags)
        if descriptors is not None:
            descriptors += _descriptors_in(ancillary)
        if data:
            _require_sender(ancillary)
        if not data or len(received) > MAX_REPLY:
            raise OSError(errno.ECONNRESET, "the server closed the connection")
        received += data
    return bytes(received)


def _descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()
