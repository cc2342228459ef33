"""Build what a generation of workers is: settings become sockets, a TLS context, a user, and the supervisor's spec.

Nothing here changes what runs: a generation that was built may still be rejected. See `resources.py` for the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Sequence

from ..config import Limits, Settings
from ..core.lame_duck import AUTO, DrainDelay
from ..core.states import Timing
from ..events import Emit
from ..parent.generations import GenerationSpec, ProgramSpec
from ..system.certificates import first_end
from ..system.cpus import cpu_count
from ..system.credentials import Identity, resolve_identity
from ..system.held_sockets import held_sockets, is_named
from ..system.listen_options import ListenOptions, Sharing
from ..system.listeners import BoundAddress, Listeners
from ..system.scoreboard import FleetSetting
from ..system.sockets import inode
from ..system.tls_contexts import TLSContexts, TLSPolicy
from ..system.tls_files import TLSFiles
from ..worker.context import GenerationConfig
from .tls_watch import paths_of

#: Policies whose TLS contexts are kept: a reload that is rejected, or taken back, ends no session.
_KEPT_POLICIES = 4


class GenerationBuilder:
    """Builds generations; owns their TLS contexts, which outlive a generation. `listeners` gets new addresses bound."""

    def __init__(self, listeners: Listeners, emit: Emit) -> None:
        self._listeners = listeners
        self._emit = emit
        self._tls: dict[object, TLSContexts] = {}
        """The contexts of the last policies, the oldest first."""
        self._resolve_identity = functools.cache(resolve_identity)
        """Users may be kept on another machine, where each lookup takes time."""

    def identity(self, settings: Settings) -> Identity | None:
        """Return the user and group of the workers; None: the supervisor's. Raises ConfigError."""
        return self._resolve_identity(settings.user, settings.group)

    def build(self, settings: Settings, files: TLSFiles | None) -> GenerationSpec[GenerationConfig]:
        """Return the spec of a generation, with its addresses bound. Raises PreforkError; nothing has changed then."""
        tls = None if files is None else self._tls_contexts(settings, files)
        workers = worker_count(settings)
        identity, directory = self.identity(settings), physical_directory()
        listeners = self._listeners.bind(settings.bind, listen_options(settings, identity))
        self._listeners.keeps_settings = settings.program is not None
        return GenerationSpec(
            workers=workers,
            timing=Timing(
                drain=settings.drain_timeout,
                drain_delay=AUTO if settings.drain_delay == "auto" else DrainDelay(settings.drain_delay),
                reload_drain=settings.reload_drain_timeout,
                stop=settings.stop_timeout,
                boot=settings.boot_timeout,
                hang=settings.hang_timeout,
            ),
            limits=_fleet_limits(settings.limits),
            listeners=tuple(_with_tls(text, tls) for each in listeners for text in each.describe()),
            config=GenerationConfig(settings, listeners, tls, files, identity, directory),
            program=program_spec(settings, listeners),
            max_worker_rss=settings.max_worker_rss,
            certificates=() if files is None else _ends_of(files),
        )

    def renewed(
        self, spec: GenerationSpec[GenerationConfig], settings: Settings, files: TLSFiles
    ) -> GenerationSpec[GenerationConfig]:
        """Return `spec` with what the TLS files of these settings say now; `spec` itself if it has other files."""
        config = spec.config
        if config.tls_files is None or paths_of(config.settings) != paths_of(settings):
            return spec
        renewed = dataclasses.replace(config, tls_files=files)
        return dataclasses.replace(spec, config=renewed, certificates=_ends_of(files))

    def _tls_contexts(self, settings: Settings, files: TLSFiles) -> TLSContexts:
        """Return the same contexts for every generation with the same policy and the same authorities for clients.

        The keys of session tickets are in the contexts, so all workers share them. A session of another policy must not
        be resumed: its client may have shown no certificate, or one of an authority that is no longer trusted.
        """
        client = settings.tls_client if settings.tls_client_ca else "off"
        from_file = bool(settings.tls_ticket_key_file)
        policy = TLSPolicy(settings.tls_profile, settings.alpn, client, settings.tls_strict_sni, from_file)
        key = policy, None if files.client_ca is None else files.client_ca.digest()
        found = self._tls.pop(key, None) or TLSContexts(policy, self._emit)
        self._tls[key] = found
        if len(self._tls) > _KEPT_POLICIES:
            del self._tls[next(iter(self._tls))]
        return found


def _ends_of(files: TLSFiles) -> tuple[tuple[str, int], ...]:
    """Return when each certificate expires, by its file, once for each file."""
    ends = {pair.cert: first_end(pair.cert_bytes) for pair in files.pairs}
    return tuple((path, end) for path, end in ends.items() if end is not None)


def program_spec(settings: Settings, listeners: Sequence[BoundAddress]) -> ProgramSpec | None:
    """Return what the supervisor knows of the program, if there is one, whose --bind is `listeners`."""
    if settings.program is None:
        return None
    named = tuple(frozenset(map(inode, each.sockets())) for each in listeners)
    held = held_sockets(listeners, ())
    exclusive = frozenset(inode(each.sock) for each in held if is_named(settings.exclusive, each.address))
    return ProgramSpec(settings.ready, named, exclusive)


def worker_count(settings: Settings) -> int:
    """Return the number of workers that the settings ask for; one for each CPU if they ask for 0."""
    return settings.workers or cpu_count()


def listen_options(settings: Settings, identity: Identity | None) -> ListenOptions:
    """Return what is set on each listening socket: with --reuse-port there is one for each worker and address."""
    options = ListenOptions(settings.backlog, gid=None if identity is None else identity.gid)
    if not settings.reuse_port:
        return options
    return dataclasses.replace(options, sharing=Sharing.CLAIMED, group_size=worker_count(settings))


def physical_directory() -> str:
    """Return the current directory without symbolic links; "" if it is gone."""
    with contextlib.suppress(OSError):
        return os.getcwd()
    return ""


def _fleet_limits(limits: Limits) -> dict[FleetSetting, int]:
    """Return the limits that hold for all workers together, as the scoreboard stores them (0: no limit)."""
    rate = limits.accept_rate
    return {
        FleetSetting.MAX_CONNECTIONS: limits.max_connections or 0,
        FleetSetting.MAX_PER_PEER: limits.max_connections_per_ip or 0,
        FleetSetting.ACCEPT_RATE: 0 if rate is None else max(1, round(rate * 1000)),
    }


def _with_tls(text: str, tls: TLSContexts | None) -> str:
    return text if tls is None else f"{text[:-1]}, tls)"
