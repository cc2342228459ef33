"""Test your own services: `run_server` runs them by the real command."""

from .harness import Server, run_server

__all__ = ["Server", "run_server"]
