"""What users test their own services with: `run_server` runs the real command."""

from .harness import Server, run_server

__all__ = ["Server", "run_server"]
