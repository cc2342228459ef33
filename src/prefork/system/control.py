"""Where the control socket is, and talking to one: the blocking side of `prefork status` and its like.

Serving it is the supervisor's; what is said is in `core/control.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import tempfile
import time
from pathlib import Path

from ..errors import ConfigError
from ..events import visible
from .unix_sockets import remove_stale_socket

#: The longest reply that is read, in bytes.
REPLY_LIMIT = 16 * 1024 * 1024


def folder() -> Path:
    """The folder of control sockets that were given no path: this user's alone.

    `$XDG_RUNTIME_DIR/prefork`, or `prefork-UID` in the temporary directory.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        return Path(runtime) / "prefork"
    return Path(tempfile.gettempdir()) / f"prefork-{os.geteuid()}"


def make_folder() -> Path:
    """The same, made if it is missing. Raises OSError where it cannot be, or is somebody else's or open to others: in a
    temporary directory anybody may have put it there first."""
    place = folder()
    with contextlib.suppress(FileExistsError):
        os.mkdir(place, 0o700)
    _require_ours(place)
    return place


def _require_ours(place: Path) -> None:
    found = os.lstat(place)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise OSError(errno.EPERM, "not a folder that is ours alone", str(place))


def may_control(sock: socket.socket) -> bool:
    """Whether the peer of a unix socket is root or this process's user (SO_PEERCRED, unix(7)); also for the server that
    a client has come to."""
    uid = _peer_uid(sock)
    return uid is None or uid in (0, os.geteuid())


def _peer_uid(sock: socket.socket) -> int | None:
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    size = struct.calcsize("3i")
    uid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1]
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
        raise ConfigError(f"{visible(place)}: {exc.strerror}; name the socket by --control PATH") from None
    living = [path for path in sorted(map(str, place.glob("*.sock"))) if remove_stale_socket(path)]
    if not living:
        raise ConfigError(f"no running prefork found (looked in {visible(place)}); name its socket by --control PATH")
    if len(living) > 1:
        raise ConfigError(f"several are running; say which: --control {' or '.join(map(visible, living))}")
    return living[0]


def ask(path: str, request: bytes, timeout: float) -> bytes:
    """Send `request` and return the line that answers it. Raises ConfigError where nobody does in `timeout` seconds."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout)
        try:
            _connect(sock, path, time.monotonic() + timeout)
            if not may_control(sock):
                # A worker can put a socket of its own in the place of one in a folder of its user.
                raise ConfigError(f"--control {visible(path)}: uid {_peer_uid(sock)} listens there, which is not root")
            sock.sendall(request)
            return _read_line(sock)
        except TimeoutError:
            raise ConfigError(f"--control {visible(path)}: no answer within {timeout:g} s") from None
        except OSError as exc:
            reason = os.strerror(exc.errno).lower() if exc.errno else str(exc)
            raise ConfigError(f"--control {visible(path)}: {reason}") from exc


def _connect(sock: socket.socket, path: str, deadline: float) -> None:
    """While its queue is full, a unix socket refuses in a way of its own, and nothing tells when there is room."""
    while True:
        try:
            sock.connect(path)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(0.05)


def _read_line(sock: socket.socket) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        data = sock.recv(65536)
        if not data or len(received) > REPLY_LIMIT:
            raise OSError(errno.ECONNRESET, "the server ended the conversation")
        received += data
    return bytes(received)
