"""`prefork check`: everything that can be known to be wrong before a server is started. Binds nothing.

The service is imported as the user that would run it: root that imports what the workers' user can change would be that
user's.
"""

from __future__ import annotations

import contextlib
import os
from typing import NoReturn

from ..config import Settings
from ..errors import ExitCode, PreforkError, ServiceError
from ..net.handlers import classify
from ..system.credentials import Identity, drop_privileges, resolve_identity
from ..system.descriptors import Descriptor
from ..system.processes import System, unblock_signals
from ..worker.loader import load
from . import trust
from .resources import validate
from .sources import Source

#: Bytes of what the child says; it fits into a pipe.
_MAX_BYTES = 4096


def check(source: Source, target: object) -> str:
    """Import the service, read the certificates, validate every option; bind nothing. What was found, in one line.

    Raises PreforkError.
    """
    settings = source.settings()
    validate(settings, starting=True)
    identity = resolve_identity(settings.user, settings.group)
    trust.prove(settings, source, identity)
    kind = _kind(target) if identity is None or identity.uid == os.geteuid() else _kind_as(identity, settings, target)
    return f"{target} is a {kind}"


def _kind(target: object) -> str:
    return classify(load(target) if isinstance(target, str) else target).kind.value


def _kind_as(identity: Identity, settings: Settings, target: object) -> str:
    """The same, found out by a child that is that user."""
    reader, writer = map(Descriptor, os.pipe())
    with contextlib.closing(reader), contextlib.closing(writer):
        child = System().fork()
        if child is None:
            _say_kind(writer.fileno(), identity, settings, target)
        with contextlib.closing(child):
            death = child.wait()
        # A process that the service has left behind may hold the other end: its end of file is not waited for.
        os.set_blocking(reader.fileno(), False)
        try:
            said = os.read(reader.fileno(), _MAX_BYTES).decode("utf-8", "replace")
        except BlockingIOError:
            said = ""
    if not death.clean:
        error = ServiceError(said or f"service {target}: importing it ended the process: {death.describe()}")
        error.exit_code = ExitCode(death.code) if said and death.code in list(ExitCode) else ExitCode.SERVICE
        raise error
    return said


def _say_kind(writer: int, identity: Identity, settings: Settings, target: object) -> NoReturn:
    code: int = ExitCode.BUG
    try:
        try:
            if settings.umask is not None:
                os.umask(settings.umask)
            drop_privileges(identity)
            unblock_signals()
            text, code = _kind(target), ExitCode.OK
        except PreforkError as exc:
            text, code = str(exc), exc.exit_code
        except (OSError, RuntimeError) as exc:
            text, code = f"--user, --group: this process cannot become that user: {exc}", ExitCode.SERVICE
        os.write(writer, text.encode("utf-8", "replace")[:_MAX_BYTES])
    finally:
        System().exit(code)
