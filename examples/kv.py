"""A small key-value server that speaks the Redis protocol (RESP2).

    prefork serve kv:handle --bind 127.0.0.1:6380 --workers 1
    redis-cli -p 6380 set greeting hello

hiredis parses the protocol (`pip install hiredis`). Memory is per worker, so each worker would have keys of its own:
hence `--workers 1`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable

import hiredis

from prefork import Stream

#: Bounds of what one client may make the server keep.
MAX_ARGUMENTS = 1024
MAX_BYTES = 512 * 1024
MAX_KEYS = 1_000_000

OK = b"+OK\r\n"
NIL = b"$-1\r\n"

#: Values, and the monotonic times at which keys expire.
values: dict[bytes, bytes] = {}
deadlines: dict[bytes, float] = {}


class WrongCommand(Exception):
    """Raised for a command that cannot be executed; the client gets the text."""


async def handle(stream: Stream) -> None:
    reader = hiredis.Reader(notEnoughData=None)
    typed: bytes | None = None
    unparsed = 0
    while data := await stream.read(65536):
        if not unparsed and typed is None and data[0] != ord("*"):
            # Not the protocol: a person types commands at a terminal, on this connection until its end.
            typed = b""
        if typed is not None:
            lines, _, typed = (typed + data).rpartition(b"\n")
            data = inline(lines)
        reader.feed(data)
        unparsed += len(data) or 1
        try:
            # Requests that came together are answered together: writes are corked until the next read has to wait.
            while (request := reader.gets()) is not None:
                unparsed = 1
                if not answer(stream, request):
                    return
        except hiredis.ProtocolError as exc:
            stream.write(b"-ERR Protocol error: %s\r\n" % str(exc).encode())
            return
        if unparsed + len(typed or b"") > MAX_BYTES:
            stream.write(b"-ERR request too large\r\n")
            return


def inline(data: bytes) -> bytes:
    """Return lines of words, as a person types them, in the protocol's form."""
    requests = []
    for line in data.splitlines():
        words = line.split()
        if words:
            requests.append(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
    return b"".join(requests)


def answer(stream: Stream, request: object) -> bool:
    """Execute one request. Return False if the client wants to leave."""
    if not isinstance(request, list) or not request or len(request) > MAX_ARGUMENTS:
        stream.write(b"-ERR Protocol error: expected an array of strings\r\n")
        return False
    if not all(type(word) is bytes for word in request):
        stream.write(b"-ERR Protocol error: expected strings\r\n")
        return False
    name, *arguments = request
    command = COMMANDS.get(name.upper())
    if command is None:
        stream.write(b"-ERR unknown command '%s'\r\n" % b" ".join(name[:64].split()))
        return True
    min_arguments, max_arguments = ARITY[command]
    if not min_arguments <= len(arguments) <= max_arguments:
        stream.write(b"-ERR wrong number of arguments for '%s' command\r\n" % name.lower())
        return True
    try:
        stream.write(command(*arguments))
    except WrongCommand as exc:
        stream.write(b"-ERR %s\r\n" % str(exc).encode())
    return command is not leave


# --- commands: bytes in, a reply out ----------------------------------------------------------------------------------


def bulk(value: bytes | None) -> bytes:
    return NIL if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


def lookup(key: bytes) -> bytes | None:
    """Return the value of a key that has not expired."""
    if key in deadlines and deadlines[key] <= time.monotonic():
        forget(key)
    return values.get(key)


def forget(key: bytes) -> bool:
    deadlines.pop(key, None)
    return values.pop(key, None) is not None


def ping(message: bytes | None = None) -> bytes:
    return b"+PONG\r\n" if message is None else bulk(message)


def echo(message: bytes) -> bytes:
    return bulk(message)


def get(key: bytes) -> bytes:
    return bulk(lookup(key))


def set_(key: bytes, value: bytes, *options: bytes) -> bytes:
    lifetime, condition = set_options(options)
    exists = lookup(key) is not None
    if condition is not None and exists is not condition:
        return NIL
    if not exists and len(values) >= MAX_KEYS:
        raise WrongCommand("too many keys")
    values[key] = value
    deadlines.pop(key, None)
    if lifetime is not None:
        deadlines[key] = time.monotonic() + lifetime
    return OK


def set_options(options: tuple[bytes, ...]) -> tuple[float | None, bool | None]:
    """Parse EX seconds, PX milliseconds, NX (only if there is no value) and XX (only if there is one)."""
    lifetime: float | None = None
    condition: bool | None = None
    words = iter(options)
    for word in words:
        match word.upper():
            case b"NX":
                condition = False
            case b"XX":
                condition = True
            case b"EX":
                lifetime = number(next(words, b""))
            case b"PX":
                lifetime = number(next(words, b"")) / 1000
            case _:
                raise WrongCommand("syntax error")
    if lifetime is not None and lifetime <= 0:
        raise WrongCommand("invalid expire time in 'set' command")
    return lifetime, condition


def number(text: bytes) -> int:
    try:
        if len(text) > 20:
            raise ValueError
        return int(text)
    except ValueError:
        raise WrongCommand("value is not an integer or out of range") from None


def delete(key: bytes, *keys: bytes) -> bytes:
    return b":%d\r\n" % sum(forget(each) for each in (key, *keys))


def exists(key: bytes, *keys: bytes) -> bytes:
    return b":%d\r\n" % sum(lookup(each) is not None for each in (key, *keys))


def increase(key: bytes) -> bytes:
    value = number(lookup(key) or b"0") + 1
    values[key] = b"%d" % value
    return b":%d\r\n" % value


def size() -> bytes:
    return b":%d\r\n" % len(values)


def leave() -> bytes:
    return OK


def nothing(*arguments: bytes) -> bytes:
    """Answer what clients ask for when they connect, and do not need."""
    return b"*0\r\n"


COMMANDS: dict[bytes, Callable[..., bytes]] = {
    b"PING": ping,
    b"ECHO": echo,
    b"GET": get,
    b"SET": set_,
    b"DEL": delete,
    b"EXISTS": exists,
    b"INCR": increase,
    b"DBSIZE": size,
    b"QUIT": leave,
    b"COMMAND": nothing,
    b"CONFIG": nothing,
}


def arity(command: Callable[..., bytes]) -> tuple[int, int]:
    """Return the minimum and the maximum number of arguments that a command takes."""
    parameters = inspect.signature(command).parameters.values()
    required = sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    return required, MAX_ARGUMENTS if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(parameters)


ARITY = {command: arity(command) for command in COMMANDS.values()}
