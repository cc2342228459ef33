"""Test your own services: `run_server` and `run_program` run them by the real command."""

from .harness import Server, run_program, run_server

__all__ = ["Server", "run_program", "run_server"]
