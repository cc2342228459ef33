"""Networks that lose packets and peers that vanish, behind two TUN devices, because no loopback is that bad."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.support import need, need_root, run_script

ROOT = Path(__file__).parents[2]

VANISHED = """
import asyncio, subprocess, sys, time
import prefork
sys.path.insert(0, sys.argv[1])
from soak.badnet import NEAR, Faults, bad_network

CLIENT = '''
import socket, sys, time
socks = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(2)]
socks[0].sendall(b"idle\\\\n"); socks[1].sendall(b"write\\\\n")
print(socks[0].recv(9), socks[1].recv(9), flush=True)
time.sleep(600)
'''
ended = {}

async def handle(stream):
    kind = (await stream.readline()).decode().strip()
    stream.write(b"yes\\n")
    try:
        await stream.drain()
        if kind == "write":
            await cut.wait()
            # The kernel takes it, and nobody will ever acknowledge it: only the kernel can tell.
            await stream.send(b"are you there?\\n")
        await stream.read(1)
        ended[kind] = (time.monotonic(), "no error")
    except OSError as exc:
        ended[kind] = (time.monotonic(), type(exc).__name__)

async def main():
    global cut
    cut = asyncio.Event()
    limits = prefork.Limits(keepalive=1, write_timeout=3)
    with bad_network(Faults()) as network:
        async with prefork.TCPServer(handle, limits=limits) as server:
            (sock,) = prefork.bind_sockets(0, NEAR)
            server.add_sockets([sock])
            port = str(sock.getsockname()[1])
            command = [*network.prefix, sys.executable, "-c", CLIENT, NEAR, port]
            client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            assert await client.stdout.readline() == b"b'yes\\\\n' b'yes\\\\n'\\n"
            network.cut()
            begun = time.monotonic()
            cut.set()
            while len(ended) < 2:
                assert time.monotonic() < begun + 20, ended
                await asyncio.sleep(0.02)
            client.kill()
            await client.wait()
            print(*(f"{kind} {error} {when - begun:.1f}" for kind, (when, error) in sorted(ended.items())))

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_peer_that_vanished_is_dropped_by_keepalive_or_write_timeout() -> None:
    """Its cable is cut: keepalive probes a silent peer, and TCP_USER_TIMEOUT drops one that acknowledges nothing."""
    need("unshare", "nsenter", "ip")
    need_root()
    done = run_script(VANISHED, str(ROOT), prefix=("unshare", "-n"), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    idle, idle_error, idle_after, writing, error, after = done.stdout.split()
    assert (idle, writing) == ("idle", "write")
    assert (idle_error, error) == ("TimeoutError", "TimeoutError")
    # A second of silence and four probes; three seconds without an acknowledgement, seen at the kernel's next attempt.
    assert float(idle_after) < 12
    assert 2.5 < float(after) < 12


PROBED = """
import asyncio, subprocess, sys, time
import prefork
sys.path.insert(0, sys.argv[1])
from soak.badnet import NEAR, Faults, bad_network

CLIENT = '''
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
sock.sendall(b"hello\\\\n")
print(sock.recv(9), flush=True)
sys.stdin.readline()
sock.sendall(b"still here\\\\n")
sys.stdin.readline()
'''
streams = []
heard = asyncio.Queue()

async def handle(stream):
    streams.append(stream)
    async for line in stream:
        await heard.put(line)
        await stream.send(b"yes\\n")

def probes():
    # tcpi_probes: those without an answer (struct tcp_info).
    return streams[0].get_extra_info("socket").getsockopt(6, 11, 104)[3]

async def until(condition, what):
    end = time.monotonic() + 20
    while True:
        assert not streams[0].is_closing(), f"closed before {what}: {streams[0].exception()!r}"
        if condition():
            return
        assert time.monotonic() < end, what
        await asyncio.sleep(0.01)

async def main():
    limits = prefork.Limits(keepalive=1, write_timeout=0.5)
    with bad_network(Faults()) as network:
        async with prefork.TCPServer(handle, limits=limits, drain_timeout=1) as server:
            (sock,) = prefork.bind_sockets(0, NEAR)
            server.add_sockets([sock])
            port = str(sock.getsockname()[1])
            command = [*network.prefix, sys.executable, "-c", CLIENT, NEAR, port]
            pipe = subprocess.PIPE
            client = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
            assert await client.stdout.readline() == b"b'yes\\\\n'\\n"
            network.cut()
            await until(lambda: probes() >= 2, "two probes are lost")
            network.mend()
            await until(lambda: probes() == 0, "a probe is answered")
            client.stdin.write(b"\\n")
            assert [await heard.get(), await heard.get()] == [b"hello\\n", b"still here\\n"]
            client.kill()
            await client.wait()

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_lost_keepalive_probe_ends_no_connection() -> None:
    """Its cable is cut for the time of two probes. A TCP_USER_TIMEOUT that is shorter would end it at the first."""
    need("unshare", "nsenter", "ip")
    need_root()
    done = run_script(PROBED, str(ROOT), prefix=("unshare", "-n"), cwd=ROOT)
    assert done.returncode == 0, done.stderr
