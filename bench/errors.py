"""What goes wrong for a reason that its user can remove."""

from __future__ import annotations


class BenchError(Exception):
    """The text tells the user what is wrong and what helps. No traceback is needed."""
