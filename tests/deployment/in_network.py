"""Run the files of deploy/haproxy and deploy/nginx as they are, with three machines of prefork behind them.

Runs as root in namespaces of mounts and network of its own, where each machine is an address of the loopback interface.
Arguments: the directory of the test, the certificate (of localhost) with its key, and what is to be run. Prints "well"
at the end.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.deployment import DEPLOY, PREFORK, ROOT
from helpers.support import wait_until

from prefork.testing import Server, run_server

FOLDER, PEM = (Path(each) for each in sys.argv[1:3])
BALANCER, MACHINES = "10.0.0.10", ("10.0.0.11", "10.0.0.12", "10.0.0.13")
#: nginx asks nothing, so a delay would only make the stop longer.
NO_DELAY = ("--drain-delay", "0")
SERVICE = """
async def handle(stream):
    async for line in stream:
        tls = stream.proxy.ssl.version.decode() if stream.proxy.ssl else ""
        stream.write(f"{stream.local} {stream.peer} v{stream.proxy.version} {tls}\\n".encode())
"""


def prepare() -> None:
    """Make the addresses, and the directories that the packages' services have at their start."""
    script = """
        mount --make-rprivate /
        ip link set lo up
        for address in 10.0.0.1 "$2" "$3" "$4" "$5"; do ip address add "$address/32" dev lo; done
        mount -t tmpfs tmpfs /run
        mkdir -p /run/haproxy
        mount -t tmpfs tmpfs /var/log/nginx
        mount -t tmpfs tmpfs /etc/haproxy
        mkdir /etc/haproxy/certs
        cp "$1" /etc/haproxy/certs/site.pem
    """
    subprocess.run(["sh", "-ec", script, "sh", PEM, BALANCER, *MACHINES], check=True)
    (FOLDER / "app.py").write_text(SERVICE)


def machine(address: str, *options: str) -> contextlib.AbstractContextManager[Server]:
    """Serve on an address as docs/many-machines.md has it."""
    return run_server(
        "app:handle",
        *("--metrics", f"{address}:9100", "--agent", f"{address}:9101", "--control", str(FOLDER / address)),
        *("--proxy-protocol", "any", "--proxy-from", "10.0.0.0/8", "--drain-delay", "6", "--workers", "1", *options),
        bind=f"{address}:9000",
        cwd=FOLDER,
        timeout=60,
    )


@contextlib.contextmanager
def balancer(*command: str) -> Iterator[None]:
    """Run a balancer until the end of the block, after it listens."""
    with (FOLDER / "balancer.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: listens() or process.poll() is not None, 20)
        assert process.poll() is None, (FOLDER / "balancer.log").read_text()
        yield
    finally:
        process.terminate()
        process.wait(20)


def listens() -> bool:
    with contextlib.suppress(OSError), socket.create_connection((BALANCER, 9000), 10):
        return True
    return False


def ask(port: int = 9000, tls: ssl.SSLContext | None = None) -> list[str]:
    """Ask once; AssertionError unless the answer has this end's own address. Return the words of the answer."""
    with socket.create_connection((BALANCER, port), 10, ("10.0.0.1", 0)) as plain:
        host, number = plain.getsockname()
        sock = tls.wrap_socket(plain, server_hostname="localhost") if tls else plain
        with sock:
            sock.sendall(b"hello\n")
            words = sock.makefile("r").readline().split()
    assert words[1] == f"{host}:{number}", words
    return words


def ask_all() -> set[str]:
    """Return the machines that answer some connections."""
    return {ask()[0].partition(":")[0] for _ in range(12)}


@contextlib.contextmanager
def clients() -> Iterator[None]:
    """Ask again and again within the block; AssertionError at its end if one has had no answer."""
    ended, failures, answers = threading.Event(), [], [0]

    def run() -> None:
        while not ended.wait(0.05):
            try:
                ask()
                answers[0] += 1
            except (OSError, AssertionError, IndexError) as exc:
                failures.append(repr(exc))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert failures == []
    assert answers[0] > 10


def tell_haproxy(commands: str) -> str:
    """Send commands to HAProxy's own socket, and return what it says."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("/run/haproxy/admin.sock")
        sock.sendall(f"{commands}\n".encode())
        return sock.makefile("r").read()


def server_state(name: str) -> str:
    """Return what HAProxy thinks of a machine: the column `status` of its statistics."""
    lines = tell_haproxy("show stat").splitlines()
    column = lines[0].split(",").index("status")
    (row,) = [line.split(",") for line in lines if line.startswith(f"app,{name},")]
    return row[column]


def drain_and_return(running: contextlib.ExitStack, notices: bool) -> None:
    """Stop the first machine under load, and start it again."""
    with clients():
        process = subprocess.Popen([PREFORK, "stop", "--control", FOLDER / MACHINES[0]], stdout=subprocess.DEVNULL)
        if notices:
            wait_until(lambda: server_state("one") != "UP", 20)
            assert process.poll() is None, "it is noticed before the server has ended"
        assert process.wait(60) == 0
        assert ask_all() == set(MACHINES[1:])
        running.enter_context(machine(MACHINES[0], *(() if notices else NO_DELAY)))
        wait_until(lambda: ask_all() == set(MACHINES), 40)


def haproxy() -> None:
    tls = ssl.create_default_context(cafile=sys.argv[4])
    files = [word for name in ("haproxy.cfg", "terminate.cfg") for word in ("-f", str(DEPLOY / "haproxy" / name))]
    with contextlib.ExitStack() as running:
        for address in MACHINES:
            running.enter_context(machine(address))
        running.enter_context(balancer("haproxy", "-db", *files))
        wait_until(lambda: ask_all() == set(MACHINES), 20)
        assert ask()[2:] == ["v2"]
        assert ask(9443, tls)[2:] == ["v2", "TLSv1.3"]
        rolling()
        drain_by_hand()
        drain_and_return(running, notices=True)


def drain_by_hand() -> None:
    """Do what docs/many-machines.md says for connections that last hours."""
    page = (ROOT / "docs" / "many-machines.md").read_text()
    drain, ready = re.findall(r'echo "(.* agent .*)" \| socat - /run/haproxy/admin.sock', page)
    with clients():
        assert tell_haproxy(drain).strip() == ""
        # Two checks and two answers of the agent later it is still so.
        time.sleep(5)
        assert server_state("one") == "DRAIN"
        assert ask_all() == set(MACHINES[1:])
        assert tell_haproxy(ready).strip() == ""
        wait_until(lambda: ask_all() == set(MACHINES), 20)


def rolling() -> None:
    """Reload all machines by the script, to which `ssh` is this machine."""
    programs = FOLDER / "bin"
    programs.mkdir()
    (programs / "ssh").write_text(
        "#!/bin/sh\n"
        "host=$1; shift\n"
        f'case $1 in runuser) exec {PREFORK} "$6" --control "{FOLDER}/$host" > /dev/null;; esac\n'
        'eval "exec $*"\n'
    )
    (programs / "ssh").chmod(0o755)
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    script = [DEPLOY / "fleet" / "rolling", "reload"]
    with clients():
        done = subprocess.run([*script, *MACHINES], env=env, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "".join(f"{each}: reload\n" for each in MACHINES)), done
        (FOLDER / "app.py").write_text("raise RuntimeError\n")
        done = subprocess.run([*script, *MACHINES], env=env, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (3, f"{MACHINES[0]}: reload\n"), done
        (FOLDER / "app.py").write_text(SERVICE)


def nginx() -> None:
    with contextlib.ExitStack() as running:
        for address in MACHINES:
            running.enter_context(machine(address, *NO_DELAY))
        configuration = DEPLOY / "nginx" / "nginx.conf"
        running.enter_context(balancer("nginx", "-g", "daemon off;", "-c", str(configuration)))
        wait_until(lambda: ask_all() == set(MACHINES), 20)
        assert ask()[2:] == ["v1"]
        drain_and_return(running, notices=False)


prepare()
{"haproxy": haproxy, "nginx": nginx}[sys.argv[3]]()
print("well")
