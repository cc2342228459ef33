"""The servers that run under `prefork run`: how each is called, what speaks to it, and which packages it needs.

Only a table. Starting them is in `running.py`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from programs.clients import FTP, GRPC, HOST, HTTP, LINES, SMTP, SSH, WEBSOCKET, Client

SERVERS = Path(__file__).parent / "servers"


@dataclass(frozen=True, slots=True)
class Program:
    """A server as its users call it."""

    name: str
    words: tuple[str, ...]
    """What follows `python`; {host} and {port} are put in. It runs in the folder `servers`."""
    client: Client
    modules: tuple[str, ...]
    """What must be installed for server and client."""
    asyncio: bool = True
    """Whether it listens by the loop of asyncio or uvloop; otherwise at the level of the socket."""
    handles_term: bool = False
    """Whether it ends on SIGTERM by a handler of its own, which may close idle connections."""
    notes: str = ""

    def arguments(self, port: int) -> list[str]:
        """Return the words after `python`, for this port of 127.0.0.1."""
        return [word.format(host=HOST, port=port) for word in self.words]

    def missing(self) -> list[str]:
        """Return the modules that are not installed here."""
        return [name for name in self.modules if importlib.util.find_spec(name) is None]


def _file(name: str, *arguments: str) -> tuple[str, ...]:
    return (f"{name}.py", "{host}", "{port}", *arguments)


PROGRAMS = (
    Program(
        "aiosmtpd",
        ("-m", "aiosmtpd", "-n", "-l", "{host}:{port}", "-c", "mail_handler.Accepting"),
        SMTP,
        ("aiosmtpd",),
    ),
    Program(
        "aiosmtpd-controller",
        _file("aiosmtpd_controller"),
        SMTP,
        ("aiosmtpd",),
        handles_term=True,
        notes="the loop runs in a thread beside the main one, which waits in sigwait",
    ),
    Program("aioftp", _file("aioftp_server"), FTP, ("aioftp",), notes="a port of its own for each transfer"),
    Program("asyncssh", _file("asyncssh_server"), SSH, ("asyncssh",)),
    Program("aiohttp", _file("aiohttp_app"), HTTP, ("aiohttp",), handles_term=True),
    Program(
        "uvicorn",
        ("-m", "uvicorn", "app:app", "--host", "{host}", "--port", "{port}", "--log-level", "warning"),
        HTTP,
        ("uvicorn",),
        handles_term=True,
        notes="binds the socket itself, and gives it to the loop",
    ),
    Program(
        "uvicorn-run", _file("uvicorn_main"), HTTP, ("uvicorn",), handles_term=True, notes="the same by `uvicorn.run`"
    ),
    Program(
        "hypercorn",
        ("-m", "hypercorn", "app:app", "--bind", "{host}:{port}", "--workers", "0"),
        HTTP,
        ("hypercorn",),
        handles_term=True,
        notes="its own workers are off, because it binds before it starts them",
    ),
    Program("websockets", _file("websockets_server"), WEBSOCKET, ("websockets",)),
    Program("grpclib", _file("grpclib_server"), GRPC, ("grpclib", "google"), handles_term=True),
    Program("tornado", _file("tornado_app"), HTTP, ("tornado",), asyncio=False, notes="accepts by itself"),
    Program(
        "twisted-epoll",
        _file("twisted_web"),
        HTTP,
        ("twisted",),
        asyncio=False,
        handles_term=True,
        notes="its default reactor",
    ),
    Program(
        "twisted-asyncio",
        _file("twisted_web", "asyncio"),
        HTTP,
        ("twisted",),
        asyncio=False,
        handles_term=True,
        notes="accepts by itself on asyncio's loop",
    ),
    Program("trio", _file("trio_lines"), LINES, ("trio",), asyncio=False),
    Program("socketserver", _file("socketserver_lines"), LINES, (), asyncio=False, notes="a thread per connection"),
    Program("asyncio", _file("asyncio_lines"), LINES, ()),
    Program(
        "waitress",
        ("-m", "waitress", "--listen={host}:{port}", "wsgi_app:app"),
        HTTP,
        ("waitress",),
        asyncio=False,
        notes="a loop of its own (asyncore), and threads",
    ),
    Program(
        "cheroot",
        ("-m", "cheroot", "--bind", "{host}:{port}", "wsgi_app:app"),
        HTTP,
        ("cheroot",),
        asyncio=False,
        notes="threads",
    ),
    Program("gevent", _file("gevent_lines"), LINES, ("gevent",), asyncio=False, notes="sockets of a class of its own"),
    Program("gevent-wsgi", _file("gevent_wsgi"), HTTP, ("gevent",), asyncio=False, notes="it patches the library"),
    Program(
        "eventlet",
        _file("eventlet_wsgi"),
        HTTP,
        ("eventlet",),
        asyncio=False,
        notes="its sockets wrap a copy of the standard class",
    ),
)
