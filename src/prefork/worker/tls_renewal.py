"""Take renewed certificates and keys that the supervisor hands out into use, while connections go on.

What a handout is made of is in `system/tls_handout.py`. Nothing here reads the files of the configuration.
"""

from __future__ import annotations

import contextlib

from ..errors import reason_of
from ..events import Emit, RenewalUnusable
from ..system.descriptors import Descriptor
from ..system.tls_contexts import TLSContexts
from ..system.tls_handout import read_handout
from ..text import escape_controls


class TLSRenewal:
    """Puts each handout into `contexts`, which serve the handshakes that begin from then on."""

    def __init__(self, contexts: TLSContexts | None, emit: Emit) -> None:
        self._contexts = contexts
        self._emit = emit

    def take(self, file: Descriptor) -> None:
        """Use what was handed out, and close the file. If it cannot be used, say so, and keep what is in use."""
        with contextlib.closing(file):
            if self._contexts is None:
                return
            try:
                self._contexts.replace(read_handout(file))
            except (OSError, MemoryError) as exc:
                self._emit(RenewalUnusable(reason_of(exc)))
            except Exception as exc:
                # The supervisor has proven it, so this is an error of prefork. It must not end what serves.
                self._emit(RenewalUnusable(escape_controls(str(exc) or repr(exc))))
