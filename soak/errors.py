"""The harness's own failures: what they say is of the harness, never of the server."""

from __future__ import annotations


class HarnessError(Exception):
    """The harness cannot go on: its ports, descriptors or memory are short, or what it waits for does not come."""
