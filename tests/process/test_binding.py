"""`bind_sockets` and `bind_unix_socket`, clause by clause, on networks of every kind."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.support import need, need_root, run_script

import prefork
from prefork.system import sockets as module


@pytest.fixture
def bind() -> Any:
    """`bind_sockets`, whose sockets are closed afterwards."""
    bound: list[socket.socket] = []

    def call(*args: Any, **options: Any) -> list[socket.socket]:
        new = prefork.bind_sockets(*args, **options)
        bound.extend(new)
        return new

    yield call
    for sock in bound:
        sock.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize("address", [None, ""])
def test_all_interfaces_on_both_families_with_one_free_port(bind: Any, address: str | None) -> None:
    for port in (0, None):
        bound = bind(port, address)
        families = [sock.family for sock in bound]
        assert families == ([socket.AF_INET, socket.AF_INET6] if has_ipv6() else [socket.AF_INET])
        assert len({sock.getsockname()[1] for sock in bound}) == 1
        assert bound[0].getsockname()[1] != 0
        assert bound[0].getsockname()[0] == "0.0.0.0"


def test_each_socket_listens_non_blocking_and_is_not_inheritable(bind: Any) -> None:
    for sock in bind(0):
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
        if sock.family == socket.AF_INET6:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_the_backlog_is_passed_on(bind: Any) -> None:
    (sock,) = bind(0, "127.0.0.1", backlog=1)
    clients = []
    for _ in range(10):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(sock.getsockname())
        clients.append(client)
    taken = 0
    while True:
        try:
            connection, _ = sock.accept()
        except BlockingIOError:
            break
        connection.close()
        taken += 1
    for client in clients:
        client.close()
    assert taken <= 3


@needs_ipv6
def test_a_family_restricts_the_addresses(bind: Any) -> None:
    assert [s.family for s in bind(0, family=socket.AF_INET)] == [socket.AF_INET]
    assert [s.family for s in bind(0, family=socket.AF_INET6)] == [socket.AF_INET6]


def test_a_host_name_is_all_of_its_addresses(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def two(host: str, *rest: Any) -> Any:
        assert host == "two.example"
        return real("127.0.0.1", *rest) + real("127.0.0.2", *rest) + real("127.0.0.1", *rest)

    monkeypatch.setattr(socket, "getaddrinfo", two)
    bound = bind(0, "two.example")
    assert [s.getsockname()[0] for s in bound] == ["127.0.0.1", "127.0.0.2"]
    assert len({s.getsockname()[1] for s in bound}) == 1


def test_an_unknown_host_name_raises_gaierror(bind: Any) -> None:
    with pytest.raises(socket.gaierror):
        bind(0, "no-such-host.invalid")


def test_flags_go_to_getaddrinfo(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = socket.getaddrinfo

    def spy(host: Any, port: Any, family: int, kind: int, proto: int, flags: int) -> Any:
        seen.append(flags)
        return real(host, port, family, kind, proto, flags)

    monkeypatch.setattr(socket, "getaddrinfo", spy)
    bind(0, "127.0.0.1")
    bind(0, "127.0.0.1", flags=socket.AI_NUMERICHOST)
    assert seen == [socket.AI_PASSIVE, socket.AI_NUMERICHOST]


def test_reuse_port_binds_a_port_twice(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = bind(0, "127.0.0.1", reuse_port=True)
    (second,) = bind(first.getsockname()[1], "127.0.0.1", reuse_port=True)
    assert first.getsockname() == second.getsockname()
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(ValueError, match="SO_REUSEPORT"):
        bind(0, "127.0.0.1", reuse_port=True)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_failed_bind_closes_what_was_bound(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def several(host: Any, *rest: Any) -> Any:
        hosts = ["127.0.0.1", "127.0.0.2", "192.0.2.1", "127.0.0.3"]
        return [entry for each in hosts for entry in real(each, *rest)]

    monkeypatch.setattr(socket, "getaddrinfo", several)
    before = descriptors()
    with pytest.raises(prefork.BindError) as caught:
        bind(0, "several.example")
    assert descriptors() == before
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert str(caught.value).startswith("bind 192.0.2.1:")
    assert "no interface of this machine" in str(caught.value)


def test_an_address_in_use_raises_with_the_address(bind: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(prefork.BindError, match=f"bind 127.0.0.1:{port}: address already in use") as caught:
            bind(port, "127.0.0.1")
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.EADDRINUSE


@needs_ipv6
def test_a_free_port_that_is_taken_on_the_second_family_is_tried_again(
    bind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._listen
    refused: list[int] = []

    def refuse_twice(sock: socket.socket, where: Any, *rest: Any) -> None:
        if sock.family == socket.AF_INET6 and len(refused) < 2:
            refused.append(where[1])
            raise OSError(errno.EADDRINUSE, "taken")
        real(sock, where, *rest)

    monkeypatch.setattr(module, "_listen", refuse_twice)
    before = descriptors()
    bound = bind(0)
    assert len({sock.getsockname()[1] for sock in bound}) == 1
    assert len(bound) == 2
    assert len(refused) == 2
    assert descriptors() == before + 2


@needs_ipv6
def test_a_given_port_is_not_replaced_by_another(bind: Any) -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind(("::", 0))
        taken.listen()
        with pytest.raises(prefork.BindError) as caught:
            bind(taken.getsockname()[1])
    assert caught.value.errno == errno.EADDRINUSE


def test_a_family_that_the_kernel_does_not_support_is_skipped(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without(family: int = -1, *rest: Any, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no such family")
        return real(family, *rest, **options)

    monkeypatch.setattr(module.socket, "socket", without)
    assert [s.family for s in bind(0)] == [socket.AF_INET]
    with pytest.raises(prefork.BindError):
        bind(0, "::1")


def test_every_other_failure_to_make_a_socket_is_raised(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: Any, **options: Any) -> socket.socket:
        raise OSError(errno.EMFILE, "no more")

    monkeypatch.setattr(module.socket, "socket", none)
    with pytest.raises(prefork.BindError) as caught:
        bind(0)
    assert caught.value.errno == errno.EMFILE


@pytest.mark.parametrize("address", [None, "two.example"])
def test_a_python_without_ipv6_binds_ipv4_only(bind: Any, monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    real = socket.getaddrinfo

    def resolver(host: Any, port: int, family: int, *rest: Any) -> Any:
        hosts = {socket.AF_INET: ["127.0.0.1"], socket.AF_UNSPEC: ["127.0.0.1", "::1"]}[socket.AddressFamily(family)]
        return [entry for each in hosts for entry in real(each, port, 0, *rest)]

    monkeypatch.setattr(socket, "has_ipv6", False)
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    assert [s.family for s in bind(0, address)] == [socket.AF_INET]


def test_link_local_localhost_on_macos_is_skipped(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def like_macos(host: Any, port: int, *rest: Any) -> Any:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1%lo0", port, 0, 1)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(socket, "getaddrinfo", like_macos)
    assert [s.getsockname()[0] for s in bind(0, "localhost")] == ["127.0.0.1"]


NETWORK = """
import json, os, prefork, socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
setup, runs = sys.argv[1], int(sys.argv[2])
if setup == "disabled":
    for name in ("all", "default", "lo"):
        open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w").write("1")
elif setup == "no address":
    subprocess.run(["ip", "-6", "addr", "flush", "dev", "lo"], check=True)
before = len(os.listdir("/proc/self/fd"))
families = set()
for _ in range(runs):
    for address in (None, "127.0.0.1"):
        bound = prefork.bind_sockets(0, address)
        assert len({sock.getsockname()[1] for sock in bound}) == 1
        families.add((address, *(sock.family.name for sock in bound)))
        for sock in bound:
            sock.close()
errors = []
for wrong in ("192.0.2.7", "::1"):
    try:
        for sock in prefork.bind_sockets(0, wrong):
            sock.close()
    except prefork.BindError as exc:
        errors.append(str(exc).split(":0")[0])
assert len(os.listdir("/proc/self/fd")) == before
print(json.dumps([sorted(map(list, families), key=str), errors]))
"""


@pytest.mark.parametrize(
    ("setup", "wildcard", "errors"),
    [
        ("both", '["AF_INET", "AF_INET6"]', ["bind 192.0.2.7"]),
        ("disabled", "either", ["bind 192.0.2.7", "bind [::1]"]),
        ("no address", '["AF_INET", "AF_INET6"]', ["bind 192.0.2.7", "bind [::1]"]),
    ],
)
def test_ipv6_that_is_off_or_has_no_address_is_skipped(setup: str, wildcard: str, errors: list[str]) -> None:
    need("unshare", "ip")
    need_root()
    done = run_script(NETWORK, setup, "300", prefix=("unshare", "-n"))
    assert done.returncode == 0, done.stderr
    families, seen = json.loads(done.stdout)
    assert seen == errors
    found = {row[0]: row[1:] for row in families}
    assert len(families) == 2, "the same on each of the runs"
    assert found["127.0.0.1"] == ["AF_INET"]
    if wildcard != "either":
        assert found[None] == json.loads(wildcard)
    else:
        assert found[None][0] == "AF_INET"


def test_a_low_port_without_rights_names_the_cure() -> None:
    need("setpriv", "unshare", "ip")
    need_root()
    code = "import prefork\ntry: prefork.bind_sockets(80, '127.0.0.1')\nexcept prefork.BindError as exc: print(exc)"
    # Root without the one capability that low ports need.
    strip = ("unshare", "-n", "setpriv", "--bounding-set", "-net_bind_service", "--inh-caps", "-net_bind_service")
    done = run_script(code, prefix=strip)
    assert done.stdout == (
        "bind 127.0.0.1:80: permission denied (ports below 1024 need root, CAP_NET_BIND_SERVICE or socket activation)\n"
    ), done.stderr


# --- unix sockets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o400])
@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
def test_a_socket_file_has_its_mode_whatever_the_umask(tmp_path: Path, mode: int, mask: int) -> None:
    before = os.umask(mask)
    try:
        with prefork.bind_unix_socket(tmp_path / "s", mode) as sock:
            assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == mode
            assert not sock.getblocking()
            assert not sock.get_inheritable()
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    finally:
        os.umask(before)


def test_a_socket_file_is_never_more_accessible_than_its_mode(tmp_path: Path) -> None:
    """The mode is set before there is a file: in the order of system calls, and under the eyes of a watcher."""
    need("strace")
    path = tmp_path / "s"
    trace = tmp_path / "trace"
    code = f"import os, prefork\nos.umask(0)\nprefork.bind_unix_socket({str(path)!r}).close()"
    run_script(code, prefix=("strace", "-qq", "-e", "trace=fchmod,bind,chmod,listen", "-o", str(trace)))
    calls = [line.split("(")[0] for line in trace.read_text().splitlines() if "(" in line]
    assert calls == ["fchmod", "bind", "listen"]

    path.unlink()
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            try:
                seen.add(stat.S_IMODE(os.stat(path).st_mode))
            except OSError:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = os.umask(0)
    try:
        for _ in range(300):
            prefork.bind_unix_socket(path).close()
            path.unlink()
    finally:
        os.umask(before)
        done.set()
        watcher.join()
    assert seen <= {0o600}


def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    prefork.bind_unix_socket(path).close()
    with prefork.bind_unix_socket(path) as sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        connection, _ = sock.accept()
        connection.close()


def test_a_live_socket_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with prefork.bind_unix_socket(path, backlog=1) as live:
        inode = path.stat().st_ino
        for _ in range(5):
            # The last ones find its queue full: busy is not dead.
            with pytest.raises(prefork.BindError, match="a process listens on it") as caught:
                prefork.bind_unix_socket(path)
            assert caught.value.errno == errno.EADDRINUSE
        assert path.stat().st_ino == inode
        connection, _ = live.accept()
        connection.close()


def test_files_of_another_kind_are_kept(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    link = tmp_path / "link"
    link.symlink_to(precious)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (precious, link, dangling, folder):
        with pytest.raises(prefork.BindError, match="it is not a socket"):
            prefork.bind_unix_socket(path)
    assert precious.read_text() == "data"
    assert link.is_symlink()
    assert not (tmp_path / "nowhere").exists()


def test_impossible_socket_paths_raise(tmp_path: Path) -> None:
    for path, code in (
        ("", errno.EINVAL),
        ("not\0abstract", errno.EINVAL),
        ("\0" + "x" * 108, errno.ENAMETOOLONG),
        ("x" * 200, errno.ENAMETOOLONG),
        (str(tmp_path / "missing" / "s"), errno.ENOENT),
    ):
        with pytest.raises(prefork.BindError) as caught:
            prefork.bind_unix_socket(path)
        assert caught.value.errno == code
        assert "\0" not in str(caught.value)


def test_a_name_of_the_abstract_namespace_has_no_file() -> None:
    for name in (f"\0prefork-test-{os.getpid()}", f"\0{os.getpid():107}"):
        with prefork.bind_unix_socket(name) as sock, socket.socket(socket.AF_UNIX) as client:
            assert module.describe(sock) == f"unix:@{name[1:]}"
            assert not sock.getblocking()
            client.connect(name)
            sock.accept()[0].close()
            with pytest.raises(prefork.BindError, match=r"unix:@.*a process listens on it") as caught:
                prefork.bind_unix_socket(name)
            assert caught.value.errno == errno.EADDRINUSE


def test_many_starters_at_once_end_with_one_server(tmp_path: Path) -> None:
    """Each finds the same stale file; a loser raises, and the winner's file stays."""
    path = tmp_path / "s"
    prefork.bind_unix_socket(path).close()
    code = f"""
import prefork, sys
try:
    sock = prefork.bind_unix_socket({str(path)!r})
except prefork.BindError:
    print("refused")
else:
    print("bound", flush=True)
    # Until all have tried.
    sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    starters = [subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) for _ in range(6)]
    words = [process.stdout.readline().strip() for process in starters if process.stdout]
    for process in starters:
        process.communicate(timeout=30)
    assert sorted(words) == ["bound"] + ["refused"] * 5


def test_a_blocking_listener_becomes_non_blocking_for_every_holder() -> None:
    """The flag belongs to the open file description, and the first process that accepts sets it once."""
    code = """
import asyncio, fcntl, os, prefork, socket
listener = socket.create_server(("127.0.0.1", 0))
copy = os.dup(listener.fileno())
async def main():
    remove = prefork.add_accept_handler(listener, lambda connection, address: connection.close())
    remove()
asyncio.run(main())
print(bool(fcntl.fcntl(copy, fcntl.F_GETFL) & os.O_NONBLOCK))
"""
    assert run_script(code).stdout == "True\n"
