"""The scenarios, by name, in the order in which they run. Each is imported when it is wanted."""

from __future__ import annotations

import importlib

from ..scenario import Scenario

#: Name, and in a few words what it shows.
NAMES = {
    "control": "the harness sees loss where loss is certain; runs before all others",
    "reload": "reloads under a mixed load, plain and TLS, over TCP and a unix socket, lose nothing",
    "reload-reuseport": "the same with a listening socket for each worker (--reuse-port)",
    "renewal": "certificates are renewed under load, and nothing is lost",
    "kill-queued": "a killed worker's siblings answer what waits in the shared queue",
    "kill-queued-reuseport": "the same with a listening socket for each worker (--reuse-port)",
    "unread": "a connection that was accepted, and sent nothing yet, is answered by its worker's drain",
    "recovery": "how soon after a kill the replacement answers",
    "orphans": "no worker outlives a supervisor that is killed at any moment",
    "hangs": "hung workers are found in time, and a freeze of the whole server kills none",
    "crashloop": "code that dies at import costs few forks, and no connection of those that run",
    "idle": "what the supervisor costs while nothing happens",
    "upgrade": "another supervisor takes over under load and loses nothing",
    "murder": "after minutes of random kills everything is as it was",
    "fairness": "how many connections each worker gets, and how soon, beside a server without fairness",
    "handshakes": "a flood of TLS handshakes is hardly felt by those that are established",
    "slow-readers": "a crowd that reads nothing costs no more memory than it may, and is cut off in time",
    "deadlines": "thousands that are silent, or trickle, are ended in time, and no other client notices",
    "log-flood": "a flood of bad connections gets a few lines a second",
    "starved": "with 5 % of a CPU no worker is taken for hung, and deadlines hold",
    "network": "late, lost, doubled, reordered and damaged packets: every answer is right",
    "recycle": "workers that have served enough are replaced under load and lose nothing",
}


def find(name: str) -> Scenario:
    """The scenario of this name. Raises KeyError."""
    NAMES[name]
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    scenario: Scenario = module.run
    return scenario
