"""`prefork check`: find what would make a start fail, without binding anything.

The service is imported as the user that would run it. Otherwise root would run code that the workers' user can change.
"""

from __future__ import annotations

import contextlib
import os
from typing import NoReturn

from ..config import Settings
from ..errors import ExitCode, PreforkError, ServiceError
from ..system.credentials import Identity, drop_privileges, resolve_identity
from ..system.descriptors import Descriptor
from ..system.processes import System
from ..system.signals import unblock_signals
from ..worker.loader import load_handler
from . import trust
from .settings_source import SettingsSource
from .validation import validate

#: Bytes of the child's answer, which must fit into a pipe because it is read after the child's end.
_MAX_BYTES = 4096


def check(source: SettingsSource, target: object) -> str:
    """Validate every option, read the certificates and import the service; return in one line what `target` is.

    Raises PreforkError for the first thing that is wrong.
    """
    settings = source.settings()
    validate(settings, starting=True)
    identity = resolve_identity(settings.user, settings.group)
    trust.load_certificate(settings, source, identity)
    kind = _kind(target) if identity is None or identity.uid == os.geteuid() else _kind_as(identity, settings, target)
    return f"{target} is a {kind}"


def _kind(target: object) -> str:
    return load_handler(target).kind.value


def _kind_as(identity: Identity, settings: Settings, target: object) -> str:
    """Import the service in a child process that has become the user `identity`, and return its kind."""
    reader, writer = map(Descriptor, os.pipe())
    with contextlib.closing(reader), contextlib.closing(writer):
        child = System().fork()
        if child is None:
            _answer_kind(writer.fileno(), identity, settings, target)
        with contextlib.closing(child):
            status = child.wait()
        # Not until the end of file, because a process that the service has started may hold the other end.
        os.set_blocking(reader.fileno(), False)
        try:
            answer = os.read(reader.fileno(), _MAX_BYTES).decode("utf-8", "replace")
        except BlockingIOError:
            answer = ""
    if not status.clean:
        error = ServiceError(answer or f"service {target}: importing it ended the process: {status.describe()}")
        error.exit_code = ExitCode(status.code) if answer and status.code in list(ExitCode) else ExitCode.SERVICE
        raise error
    return answer


def _answer_kind(writer: int, identity: Identity, settings: Settings, target: object) -> NoReturn:
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
