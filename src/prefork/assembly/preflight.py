"""`prefork check`: find what would make a start fail, without binding anything.

The service is imported in a child process, because its module may end the process. The child is the user that would
run it. Otherwise root would run code that the workers' user can change.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from dataclasses import dataclass
from typing import NoReturn

from ..checks import reject
from ..config import Settings
from ..errors import ExitCode, PreforkError, ServiceError, reason_of
from ..system.certificates import examine
from ..system.credentials import Identity, drop_privileges, resolve_identity
from ..system.descriptors import Descriptor
from ..system.parent_death import die_with_parent
from ..system.processes import System
from ..system.signals import unblock_signals
from ..system.tls_files import CertificatePair, TLSFiles
from ..text import escape_controls
from ..worker.loader import load_handler
from . import trust
from .places import check_places
from .settings_source import SettingsSource, locating
from .validation import validate

#: Bytes of the child's answer, which must fit into a pipe because it is read after the child's end.
_MAX_BYTES = 4096
#: Names of a certificate that are shown, of which it may have thousands.
MAX_NAMES = 20
#: Characters of one line of a traceback.
_LINE_LIMIT = 2000


@dataclass(frozen=True, slots=True)
class Found:
    """What is there to be said of settings and a service that can work, each in one line."""

    summary: str
    warnings: tuple[str, ...]
    facts: tuple[str, ...] = ()
    """Which names each certificate is offered for."""


def check(source: SettingsSource, target: object) -> Found:
    """Validate every option, read the certificates, look at the places, import the service, and return what it is.

    Raises PreforkError for the first thing that is wrong.
    """
    with locating(source):
        settings = source.settings()
        validate(settings, starting=True)
        identity = resolve_identity(settings.user, settings.group)
        files = trust.load_tls_files(settings, source, identity)
        # After that, because it looks where the settings say, and they may be in a file that root must not trust.
        check_places(settings)
        warnings = [] if files is None else [each for pair in files.pairs for each in _examine(pair)]
        facts = () if files is None else _describe_names(files, settings.tls_strict_sni)
    kind = _kind(target, settings, identity)
    return Found(f"{target} is {'an' if kind[0] in 'aeiou' else 'a'} {kind}", tuple(warnings), facts)


def _describe_names(files: TLSFiles, strict: bool) -> tuple[str, ...]:
    """Return what each certificate is for, in one line each."""
    default = () if strict else files.choice(strict).default
    lines = []
    for position, pair in enumerate(files.pairs):
        found = pair.identity()
        names = list(found.names[:MAX_NAMES])
        if len(found.names) > MAX_NAMES:
            names.append(f"{len(found.names) - MAX_NAMES} more names")
        if position in default:
            names.append("every other client" if names else "every client")
        key = f" ({found.key_type})" if found.key_type else ""
        lines.append(f"--tls-cert {escape_controls(pair.cert)}: for {', '.join(names)}{key}")
    return tuple(lines)


def _examine(pair: CertificatePair) -> list[str]:
    """Return warnings about the dates of a certificate. Raises ConfigError if the server's own is not valid now."""
    found = examine(pair.cert_bytes, time.time())
    for each in found:
        if each.is_leaf and each.is_invalid:
            reject("--tls-cert", pair.cert, f"{each.text}, so clients refuse it (renew it)")
    return [f"--tls-cert {escape_controls(pair.cert)}: {each.text}" for each in found]


def _kind(target: object, settings: Settings, identity: Identity | None) -> str:
    """Import the service in a child process that has become the user `identity`, and return its kind."""
    reader, writer = map(Descriptor, os.pipe())
    parent = os.getpid()
    with contextlib.closing(reader), contextlib.closing(writer):
        child = System().fork()
        if child is None:
            _answer_kind(writer.fileno(), parent, identity, settings, target)
        with contextlib.closing(child):
            try:
                status = child.wait()
            except BaseException:
                # Interrupted: the module may never return.
                child.signal(signal.SIGKILL)
                child.wait()
                raise
        # Not until the end of file, because a process that the service has started may hold the other end.
        os.set_blocking(reader.fileno(), False)
        try:
            answer = os.read(reader.fileno(), _MAX_BYTES).decode("utf-8", "replace")
        except BlockingIOError:
            answer = ""
    if status.clean and answer:
        return answer
    error = ServiceError(answer or f"service {target}: importing it ended the process: {status.describe()}")
    error.exit_code = ExitCode(status.code) if answer and status.code in list(ExitCode) else ExitCode.SERVICE
    raise error


def _answer_kind(writer: int, parent: int, identity: Identity | None, settings: Settings, target: object) -> NoReturn:
    code: int = ExitCode.BUG
    try:
        text, code = _try(parent, identity, settings, target)
        os.write(writer, text.encode("utf-8", "replace")[:_MAX_BYTES])
    except Exception:
        traceback.print_exc()
    finally:
        System().exit(code)


def _try(parent: int, identity: Identity | None, settings: Settings, target: object) -> tuple[str, int]:
    """Return the kind of the service, or why there is none, and the exit status."""
    try:
        if settings.umask is not None:
            os.umask(settings.umask)
        if identity is not None:
            drop_privileges(identity)
    except (OSError, RuntimeError) as exc:
        reason = reason_of(exc) if isinstance(exc, OSError) else str(exc)
        return f"--user, --group: this process cannot become that user: {reason}", ExitCode.SERVICE
    die_with_parent(parent, signal.SIGKILL)
    unblock_signals()
    try:
        return load_handler(target, settings).kind.value, ExitCode.OK
    except PreforkError as exc:
        if settings.traceback and exc.__cause__ is not None:
            _print_traceback(exc.__cause__)
        return str(exc), exc.exit_code


def _print_traceback(exc: BaseException) -> None:
    lines = "".join(traceback.format_exception(exc)).splitlines()
    text = "".join(f"{escape_controls(line, _LINE_LIMIT)}\n" for line in lines)
    with contextlib.suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))
