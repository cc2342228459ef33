"""Tornado itself on our `fork_processes`: its sockets, its HTTP server, our children."""

from __future__ import annotations

import os
import signal
import urllib.request

from helpers.forked import running
from helpers.support import wait_until

SERVER = """
import asyncio, os, signal, sys
import prefork
import tornado.process
from tornado import httpserver, netutil, web
{patch}
class Task(web.RequestHandler):
    def get(self):
        self.write(f"{{fork.task_id()}} {{os.getpid()}}")
sockets = netutil.bind_sockets(0, "127.0.0.1")
print(sockets[0].getsockname()[1], flush=True)
fork.fork_processes(3)
async def main():
    server = httpserver.HTTPServer(web.Application([("/", Task)]))
    server.add_sockets(sockets)
    print("ready", os.getpid(), flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    server.stop()
    await server.close_all_connections()
asyncio.run(main())
"""


def serve_and_ask(patch: str) -> None:
    with running(SERVER.format(patch=patch)) as script:
        lines = script.lines(4)
        port = next(line[0] for line in lines if len(line) == 1)
        assert sum(line[0] == "ready" for line in lines) == 3

        def ask() -> tuple[str, int]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                task, pid = answer.read().decode().split()
            return task, int(pid)

        seen: dict[str, int] = {}

        def all_seen() -> bool:
            # Which child accepts is the kernel's choice: one that answers is stopped until the others have.
            task, pid = ask()
            if seen.get(task) != pid:
                seen[task] = pid
                os.kill(pid, signal.SIGSTOP)
            return len(seen) == 3

        wait_until(all_seen, what="an answer from each task")
        for pid in seen.values():
            os.kill(pid, signal.SIGCONT)
        assert set(seen) == {"0", "1", "2"}

        os.kill(seen["1"], signal.SIGKILL)
        restarted = script.lines(5)[4]
        assert f"child 1 (pid {seen['1']}) killed by signal 9, restarting" in script.err
        for task in ("0", "2"):
            os.kill(seen[task], signal.SIGSTOP)
        try:
            assert ask() == ("1", int(restarted[1]))
        finally:
            for task in ("0", "2"):
                os.kill(seen[task], signal.SIGCONT)
        script.signal(signal.SIGTERM)
        assert script.end() == 0, script.err
        assert script.err.count("\n") == 1, script.err


def test_a_tornado_server_runs_on_our_children() -> None:
    serve_and_ask("import prefork as fork")


def test_tornado_runs_on_our_functions_in_the_place_of_its_own() -> None:
    """As its own `TCPServer.start(n)` calls it: through the module `tornado.process`."""
    serve_and_ask(
        "import tornado.process as fork\nfork.fork_processes, fork.task_id = prefork.fork_processes, prefork.task_id"
    )


def test_tornados_multi_process_start_works() -> None:
    code = """
import asyncio, prefork, tornado.tcpserver, tornado.process
tornado.process.fork_processes = prefork.fork_processes
tornado.tcpserver.process.fork_processes = prefork.fork_processes
server = tornado.tcpserver.TCPServer()
server.bind(0, "127.0.0.1")
server.start(2)
print("child", prefork.task_id(), flush=True)
async def main():
    server.stop()
asyncio.run(main())
"""
    with running(code) as script:
        assert sorted(script.lines(2)) == [["child", "0"], ["child", "1"]]
        assert script.end() == 0, script.err
