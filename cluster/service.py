"""The service of the hosts: answers frames, and says in each answer which host this is and which peer it sees."""

from __future__ import annotations

import os

from prefork import Stream
from soak.services import counted

from .mark import Mark, pack

#: The variable of the environment with the host's number.
HOST = "CLUSTER_HOST"


class Service(counted.Service):
    """The counted service, whose answers name the host and the peer in place of the process."""

    async def start(self) -> None:
        await super().start()
        self._host = int(os.environ[HOST])

    def number(self, stream: Stream) -> int:
        """Return the host's number and the peer's address, packed."""
        address, _, port = stream.peer.rpartition(":")
        return pack(Mark(self._host, address, int(port)))


service = Service()
