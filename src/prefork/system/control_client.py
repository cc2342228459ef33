"""Where the control socket is, and talking to one: the blocking side of `prefork status` and its like.

Serving it is the supervisor's; what is said is in `core/control_protocol.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from pathlib import Path

from ..errors import ConfigError, reason_of
from ..text import escape_controls
from .paths import hold
from .unix_sockets import connect, remove_stale_socket

#: The longest reply that is read, in bytes.
REPLY_LIMIT = 16 * 1024 * 1024
#: Of a process: its pid, uid and gid (unix(7), struct ucred).
_CREDENTIALS = struct.Struct("=iII")


def folder() -> Path:
    """The folder of control sockets that were given no path: this user's alone.

    `$XDG_RUNTIME_DIR/prefork`, or `prefork-UID` in `$TMPDIR` or /tmp.
    """
    runtime, temporary = (os.environ.get(name, "") for name in ("XDG_RUNTIME_DIR", "TMPDIR"))
    if os.path.isabs(runtime):
        return Path(runtime) / "prefork"
    # Not tempfile.gettempdir(), which makes a file in the folder, and follows links, to see whether it can.
    return Path(temporary if os.path.isabs(temporary) else "/tmp") / f"prefork-{os.geteuid()}"


def make_folder() -> Path:
    """The same, made if it is missing. Raises OSError where it cannot be, or is somebody else's or open to others: in a
    temporary directory anybody may have put it there first."""
    path = folder()
    _require_ours(path, make=True)
    return path


def _require_ours(path: Path, make: bool = False) -> None:
    try:
        with hold(path) as place:
            with contextlib.suppress(FileExistsError):
                if make:
                    place.make_folder(0o700)
            found = place.look()
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, str(path)) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise OSError(errno.EPERM, "not a folder that is ours alone", str(path))


def may_control(sock: socket.socket) -> bool:
    """Whether the peer of a unix socket is root or this process's user (SO_PEERCRED, unix(7)); also for the server that
    a client has come to."""
    uid = _peer_uid(sock)
    return uid is None or uid in (0, os.geteuid())


def _peer_uid(sock: socket.socket) -> int | None:
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    uid: int = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
    return uid


def find() -> str:
    """The control socket of the one server that runs. Raises ConfigError if there is none, or more than one, and where
    somebody else could have put one there."""
    place = folder()
    try:
        _require_ours(place)
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise ConfigError(f"{escape_controls(place)}: {exc.strerror}; name the socket by --control PATH") from None
    living = [path for path in sorted(map(str, place.glob("*.sock"))) if remove_stale_socket(path)]
    if not living:
        raise ConfigError(
            f"no running prefork found (looked in {escape_controls(place)}); name its socket by --control PATH"
        )
    if len(living) > 1:
        raise ConfigError(f"several are running; say which: --control {' or '.join(map(escape_controls, living))}")
    return living[0]


def ask(path: str, request: bytes, timeout: float) -> bytes:
    """Send `request` and return the line that answers it. Raises ConfigError where nobody does in `timeout` seconds."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout)
        try:
            _demand_credentials(sock)
            _connect(sock, path, time.monotonic() + timeout)
            if not may_control(sock):
                # A worker can put a socket of its own in the place of one in a folder of its user.
                raise ConfigError(
                    f"--control {escape_controls(path)}: uid {_peer_uid(sock)} listens there, which is not root"
                )
            sock.sendall(request)
            return _read_line(sock)
        except TimeoutError:
            raise ConfigError(f"--control {escape_controls(path)}: no answer within {timeout:g} s") from None
        except OSError as exc:
            raise ConfigError(f"--control {escape_controls(path)}: {reason_of(exc)}") from exc


def _demand_credentials(sock: socket.socket) -> None:
    """Have the kernel tell the sender of each message (unix(7), SCM_CREDENTIALS). The peer's credentials are those of
    the process that called listen(2): root, for a socket of the service on which a worker answers."""
    if hasattr(socket, "SO_PASSCRED"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def _require_sender(ancillary: list[tuple[int, int, bytes]]) -> None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, getattr(socket, "SCM_CREDENTIALS", None)):
            uid = _CREDENTIALS.unpack(data)[1]
            if uid not in (0, os.geteuid()):
                raise OSError(errno.EPERM, f"uid {uid} answers there, which is not root")


def _connect(sock: socket.socket, path: str, deadline: float) -> None:
    """While its queue is full, a unix socket refuses in a way of its own, and nothing tells when there is room."""
    while True:
        try:
            connect(sock, path)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(0.05)


def _read_line(sock: socket.socket) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        data, ancillary, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(_CREDENTIALS.size))
        if data:
            _require_sender(ancillary)
        if not data or len(received) > REPLY_LIMIT:
            raise OSError(errno.ECONNRESET, "the server ended the conversation")
        received += data
    return bytes(received)
