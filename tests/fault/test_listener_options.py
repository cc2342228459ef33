"""What a worker sets on a listening socket affects all, and outlives it: it is noticed, repaired and reported."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.servers import echo, serving, upgrade
from helpers.support import need_root, run_script, wait_until

from prefork.addresses import FdAddress, TCPAddress, UnixAddress
from prefork.assembly.listener_repair import REBIND_INTERVAL, ListenerRepair
from prefork.events import Event, ListenerDamaged, ListenerRebound, ListenerRestored
from prefork.system.listen_options import ListenOptions
from prefork.system.listeners import BoundAddress, Listeners
from prefork.testing import Server

SOCKET, TCP, IP, IPV6 = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6
#: Level, number, and the value that a misbehaving worker sets: for all sockets, for TCP, for one family.
ALL = {
    "SO_BINDTODEVICE": (SOCKET, 25, b"lo"),
    "SO_RCVBUF": (SOCKET, 8, 4096),
    "SO_SNDBUF": (SOCKET, 7, 4096),
    "SO_RCVLOWAT": (SOCKET, 18, 10**6),
    "SO_RCVTIMEO": (SOCKET, 20, struct.pack("ll", 3, 0)),
    "SO_SNDTIMEO": (SOCKET, 21, struct.pack("ll", 3, 0)),
    "SO_LINGER": (SOCKET, 13, struct.pack("ii", 1, 0)),
    "SO_MARK": (SOCKET, 36, 7),
    "SO_PRIORITY": (SOCKET, 12, 3),
    "SO_DONTROUTE": (SOCKET, 5, 1),
    "SO_OOBINLINE": (SOCKET, 10, 1),
    "SO_MAX_PACING_RATE": (SOCKET, 47, 1000),
}
INTERNET = {
    "SO_REUSEPORT": (SOCKET, 15, 1),
    "SO_REUSEADDR": (SOCKET, 2, 0),
    "TCP_MAXSEG": (TCP, 2, 100),
    "TCP_CORK": (TCP, 3, 1),
    "TCP_SYNCNT": (TCP, 7, 2),
    "TCP_LINGER2": (TCP, 8, 3),
    "TCP_DEFER_ACCEPT": (TCP, 9, 30),
    "TCP_CONGESTION": (TCP, 13, b"reno"),
    "TCP_FASTOPEN": (TCP, 23, 5),
    "TCP_NOTSENT_LOWAT": (TCP, 25, 1),
}
FAMILIES = {
    socket.AF_INET: {
        "IP_MINTTL": (IP, 21, 255),
        "IP_TTL": (IP, 2, 1),
        "IP_TOS": (IP, 1, 16),
        "IP_MTU_DISCOVER": (IP, 10, 3),
        "IP_RECVERR": (IP, 11, 1),
    },
    socket.AF_INET6: {
        "IPV6_MINHOPCOUNT": (IPV6, 73, 255),
        "IPV6_UNICAST_HOPS": (IPV6, 16, 1),
        "IPV6_TCLASS": (IPV6, 67, 16),
        "IPV6_MTU_DISCOVER": (IPV6, 23, 3),
        "IPV6_RECVERR": (IPV6, 25, 1),
        "IPV6_DONTFRAG": (IPV6, 62, 1),
    },
    socket.AF_UNIX: {"SO_PASSCRED": (SOCKET, 16, 1)},
}
#: An instruction that lets nothing through (struct sock_filter).
DROP = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))


def attach_filter(sock: socket.socket) -> None:
    sock.setsockopt(SOCKET, 26, struct.pack("HL", 1, ctypes.addressof(DROP)))


def lock_filter(sock: socket.socket) -> None:
    attach_filter(sock)
    sock.setsockopt(SOCKET, 44, 1)


def options_of(family: int) -> dict[str, tuple[int, int, int | bytes]]:
    return {**ALL, **({} if family == socket.AF_UNIX else INTERNET), **FAMILIES[family]}


# --- without processes ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(family: int, folder: Path) -> Iterator[tuple[Listeners, BoundAddress, socket.socket]]:
    """Yield all listeners, the only one of them, and a worker's descriptor of its socket."""
    unix = UnixAddress(str(folder / "socket"), 0o640)
    address = {socket.AF_INET: TCPAddress("127.0.0.1", 0), socket.AF_INET6: TCPAddress("::1", 0)}.get(family, unix)
    with contextlib.closing(Listeners()) as listeners:
        (listener,) = listeners.bind([address], ListenOptions(100))
        with listener.sockets()[0].dup() as theirs:
            yield listeners, listener, theirs


def connects(listener: BoundAddress) -> bool:
    sock = listener.sockets()[0]
    with socket.socket(sock.family) as client:
        client.settimeout(0.5)
        return client.connect_ex(sock.getsockname()) == 0


CASES = [(family, name) for family in FAMILIES for name in options_of(family)]


@pytest.mark.parametrize(("family", "name"), CASES, ids=[f"{family.name}-{name}" for family, name in CASES])
def test_each_option_is_restored(tmp_path: Path, family: int, name: str) -> None:
    level, number, bad = options_of(family)[name]
    with listening(family, tmp_path) as (listeners, listener, theirs):
        before = theirs.getsockopt(level, number, 16)
        try:
            theirs.setsockopt(level, number, bad)
        except OSError as exc:
            pytest.skip(f"this process, or this kernel, cannot set {name}: {exc}")
        assert theirs.getsockopt(level, number, 16) != before
        (damage,) = listeners.repair()
        assert name in damage.changed
        assert damage.unrepaired == ()
        assert theirs.getsockopt(level, number, 16) == before
        assert listeners.repair() == []
        assert connects(listener)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("flag", ["O_NONBLOCK", "O_ASYNC"])
def test_the_flags_of_the_open_file_description_are_restored(tmp_path: Path, family: int, flag: str) -> None:
    with listening(family, tmp_path) as (listeners, _, theirs):
        before = fcntl.fcntl(theirs, fcntl.F_GETFL)
        fcntl.fcntl(theirs, fcntl.F_SETFL, before ^ getattr(os, flag))
        (damage,) = listeners.repair()
        assert damage.changed == (flag,)
        assert fcntl.fcntl(theirs, fcntl.F_GETFL) == before


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_backlog_filter_and_shutdown_of_a_tcp_socket_are_undone(tmp_path: Path, family: int) -> None:
    with listening(family, tmp_path) as (listeners, listener, theirs):
        theirs.listen(0)
        attach_filter(theirs)
        (damage,) = listeners.repair()
        assert set(damage.changed) == {"backlog", "SO_ATTACH_FILTER"}
        assert connects(listener)
        listeners.apply_options([listener], [TCPAddress("127.0.0.1", 0)], ListenOptions(50))
        assert listeners.repair() == [], "another backlog, set by a reload, is no damage"
        theirs.shutdown(socket.SHUT_RDWR)
        (damage,) = listeners.repair()
        assert damage.shut_down
        assert damage.unrepaired == ()
        assert connects(listener)


UNREPAIRABLE: list[tuple[int, str, Callable[[socket.socket], object]]] = [
    (socket.AF_INET, "SO_LOCK_FILTER", lock_filter),
    (socket.AF_INET6, "SO_LOCK_FILTER", lock_filter),
    (socket.AF_INET, "TCP_WINDOW_CLAMP", lambda sock: sock.setsockopt(TCP, 10, 2000)),
    (socket.AF_UNIX, "shutdown", lambda sock: sock.shutdown(socket.SHUT_RDWR)),
]


@pytest.mark.parametrize(("family", "name", "spoil"), UNREPAIRABLE)
def test_a_socket_that_cannot_be_repaired_is_rebound(
    tmp_path: Path, family: int, name: str, spoil: Callable[[socket.socket], object]
) -> None:
    now = [0.0]
    events: list[Event] = []
    with listening(family, tmp_path) as (listeners, listener, theirs):
        repair = ListenerRepair(listeners, lambda: now[0])
        where = theirs.getsockname()
        spoil(theirs)
        fresh = repair.repair_or_rebind(events.append)[listener]
        assert fresh.sockets()[0].getsockname() == where
        assert [type(event) for event in events] == [ListenerRebound]
        assert name in str(events[0])
        assert repair.repair_or_rebind(events.append) == {}, "the replaced listener is not checked any more"
        if family == socket.AF_UNIX:
            assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o640
        # As at the end of the reload.
        theirs.close()
        listeners.close_except([fresh])
        assert listener.sockets()[0].fileno() == -1
        assert all(connects(fresh) for _ in range(8))
        # A service that does it again at once does not keep the server busy.
        with fresh.sockets()[0].dup() as again:
            spoil(again)
            assert repair.repair_or_rebind(events.append) == {}
            assert isinstance(events[-1], ListenerDamaged)
            now[0] += REBIND_INTERVAL
            assert fresh in repair.repair_or_rebind(events.append)


def test_a_passed_socket_is_repaired_but_never_rebound() -> None:
    events: list[Event] = []
    with socket.create_server(("127.0.0.1", 0)) as theirs, contextlib.closing(Listeners()) as listeners:
        theirs.setsockopt(SOCKET, socket.SO_PRIORITY, 2)
        (listener,) = listeners.bind([FdAddress(os.dup(theirs.fileno()))], ListenOptions(100))
        repair = ListenerRepair(listeners)
        theirs.setsockopt(SOCKET, socket.SO_PRIORITY, 3)
        theirs.setsockopt(IP, 21, 255)
        assert repair.repair_or_rebind(events.append) == {}
        assert [type(event) for event in events] == [ListenerRestored]
        assert theirs.getsockopt(SOCKET, socket.SO_PRIORITY) == 2, "as its owner has set it"
        assert connects(listener)
        lock_filter(theirs)
        for _ in range(2):
            assert repair.repair_or_rebind(events.append) == {}
        assert [type(event) for event in events[1:]] == [ListenerDamaged], "reported once"


def test_a_device_binding_that_cannot_be_undone() -> None:
    """Any user may bind a socket to a device once; undoing it requires CAP_NET_RAW."""
    need_root()
    code = """
        import encodings.idna, os, socket
        from prefork.addresses import TCPAddress
        from prefork.assembly.listener_repair import ListenerRepair
        from prefork.system.listen_options import ListenOptions
        from prefork.system.listeners import Listeners
        os.setuid(65534)
        listeners = Listeners()
        (listener,) = listeners.bind([TCPAddress("127.0.0.1", 0)], ListenOptions(100))
        where = listener.sockets()[0].getsockname()
        listener.sockets()[0].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        fresh = ListenerRepair(listeners).repair_or_rebind(print)[listener]
        assert fresh.sockets()[0].getsockname() == where
        assert fresh.sockets()[0].getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == b""
    """
    done = run_script(code)
    assert done.returncode == 0, done.stderr
    assert "SO_BINDTODEVICE, which cannot be set back; address bound again" in done.stdout


# --- with workers -----------------------------------------------------------------------------------------------------

SERVICE = f"""
import ctypes, os, signal, socket, struct
ALL, INTERNET = {ALL!r}, {INTERNET!r}
FAMILIES = {{int(family): options for family, options in { ({int(k): v for k, v in FAMILIES.items()})!r}.items()}}
DROP = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))

def listening():
    for number in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(number)))
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                yield sock
        except OSError:
            pass

def spoil(sock):
    options = {{**ALL, **({{}} if sock.family == socket.AF_UNIX else INTERNET), **FAMILIES[int(sock.family)]}}
    for level, number, value in options.values():
        try:
            sock.setsockopt(level, number, value)
        except OSError:
            pass
    # Reset everything else that would hide the effect of these two.
    sock.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", 1, ctypes.addressof(DROP)))
    sock.listen(0)

def lock(sock):
    if sock.family == socket.AF_UNIX:
        sock.shutdown(socket.SHUT_RDWR)
    else:
        sock.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", 1, ctypes.addressof(DROP)))
        sock.setsockopt(socket.SOL_SOCKET, 44, 1)

async def handle(stream):
    async for line in stream:
        if line.startswith((b"spoil", b"lock")):
            for sock in list(listening()):
                (spoil if line.startswith(b"spoil") else lock)(sock)
        if line.endswith(b"die\\n"):
            os.kill(os.getpid(), signal.SIGKILL)
        stream.write(line)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def binds(folder: Path) -> list[str]:
    return ["127.0.0.1:0", "[::1]:0", f"unix:{folder}/socket"]


def send_line(server: Server, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(line)
        with contextlib.suppress(ConnectionError):
            sock.recv(100)


def all_answer(server: Server, folder: Path) -> bool:
    """Return whether each address answers, several times, so that each of its sockets is used."""
    six = int(server.addresses[1].rpartition(":")[2])
    try:
        with socket.create_connection(("::1", six), timeout=2) as sock:
            sock.sendall(b"hello\n")
            if sock.recv(100) != b"hello\n":
                return False
        return echo(("127.0.0.1", server.port)) == b"hello\n" == echo(str(folder / "socket"))
    except OSError:
        return False


def reload(server: Server) -> None:
    server.signal(signal.SIGHUP)
    wait_until(lambda: "reloaded:" in server.stderr(), 20)


def lines(server: Server) -> list[str]:
    return [line for line in server.stderr().splitlines() if "a process it started changed" in line]


@pytest.mark.parametrize("how", ["death", "reload"])
def test_what_a_worker_has_set_is_restored(folder: Path, how: str) -> None:
    with serving(folder, workers=1, bind=binds(folder)) as server:
        assert all_answer(server, folder)
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        wait_until(lambda: "restarting" in server.stderr())
        assert all_answer(server, folder)
        assert lines(server) == [], "what workers of ours set is no damage"
        if how == "death":
            send_line(server, b"spoil and die\n")
            wait_until(lambda: server.stderr().count("restarting") == 2)
        else:
            send_line(server, b"spoil\n")
            reload(server)
        wait_until(lambda: len(lines(server)) == 3)
        for line, family in zip(lines(server), FAMILIES, strict=True):
            assert line.endswith("; set back")
            missing = [name for name in options_of(family) if name not in line]
            # Some require privileges or kernels that are missing here.
            assert set(missing) <= {"SO_MARK", "SO_PRIORITY", "SO_DONTROUTE", "TCP_CONGESTION"}, line
            assert "SO_ATTACH_FILTER" in line
        assert all_answer(server, folder)
        assert server.stop() == 0


@pytest.mark.parametrize("how", ["death", "reload"])
@pytest.mark.slow
def test_workers_get_a_new_socket_if_the_old_one_cannot_be_repaired(folder: Path, how: str) -> None:
    with serving(folder, workers=1, bind=binds(folder)) as server:
        send_line(server, b"lock and die\n" if how == "death" else b"lock\n")
        if how == "reload":
            reload(server)
        wait_until(lambda: len(lines(server)) == 3)
        assert all("bound again" in line for line in lines(server))
        wait_until(lambda: "reloaded:" in server.stderr(), 20)
        wait_until(lambda: all_answer(server, folder))
        assert all(all_answer(server, folder) for _ in range(5))
        assert server.stop() == 0
        assert not (folder / "socket").exists()


def test_an_upgrade_does_not_pass_the_damage_on(folder: Path) -> None:
    with serving(folder, workers=1, bind=binds(folder)) as server:
        send_line(server, b"spoil\n")
        upgrade(folder)
        assert len(lines(server)) == 3
        assert all_answer(server, folder)
