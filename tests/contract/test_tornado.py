"""Tornado on our sockets and our accepting: call-compatible, and served well."""

from __future__ import annotations

import inspect

import pytest
from helpers.support import run_script

import prefork

netutil = pytest.importorskip("tornado.netutil")
process = pytest.importorskip("tornado.process")

PROGRAM = """
import asyncio, prefork, sys
import tornado.iostream, tornado.netutil, tornado.tcpserver, tornado.web, tornado.httpserver
tornado.tcpserver.add_accept_handler = prefork.add_accept_handler
tornado.tcpserver.bind_sockets = prefork.bind_sockets
tornado.netutil.add_accept_handler = tornado.netutil.bind_sockets = None

class Echo(tornado.tcpserver.TCPServer):
    async def handle_stream(self, stream, address):
        assert address[0] in ("127.0.0.1", "::1"), address
        try:
            while True:
                await stream.write(await stream.read_until(b"\\n"))
        except tornado.iostream.StreamClosedError:
            pass

class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write("hello")

async def http(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    text = await reader.read()
    writer.close()
    return text

async def main():
    server = Echo()
    sockets = prefork.bind_sockets(0)
    server.add_sockets(sockets)
    for host in ["127.0.0.1"] + ["::1"] * (len(sockets) - 1):
        for _ in range(50):
            reader, writer = await asyncio.open_connection(host, sockets[0].getsockname()[1])
            writer.write(b"ping\\n")
            assert await reader.readline() == b"ping\\n"
            writer.close()
    web = tornado.httpserver.HTTPServer(tornado.web.Application([("/", Hello)]))
    web_sockets = prefork.bind_sockets(0, "127.0.0.1")
    web.add_sockets(web_sockets)
    assert (await http(web_sockets[0].getsockname()[1])).endswith(b"hello")
    server.listen(0, "127.0.0.1")
    server.stop()
    web.stop()
    print("served")

asyncio.run(main())
"""


def test_tornado_runs_on_our_bind_sockets_and_accept_handler() -> None:
    done = run_script(PROGRAM)
    assert done.stdout == "served\n", done.stderr


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (prefork.bind_sockets, netutil.bind_sockets),
        (prefork.bind_unix_socket, netutil.bind_unix_socket),
        (prefork.add_accept_handler, netutil.add_accept_handler),
        (prefork.fork_processes, process.fork_processes),
        (prefork.task_id, process.task_id),
    ],
)
def test_every_call_of_tornados_functions_is_one_of_ours(ours: object, theirs: object) -> None:
    wanted = inspect.signature(theirs).parameters  # type: ignore[arg-type]  # functions, all of them
    given = inspect.signature(ours).parameters  # type: ignore[arg-type]  # functions, all of them
    assert list(given)[: len(wanted)] == [name.replace("file", "path") if name == "file" else name for name in wanted]
    for name, parameter in zip(given, wanted.values(), strict=False):
        assert (given[name].default is inspect.Parameter.empty) == (parameter.default is inspect.Parameter.empty)
