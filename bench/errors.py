"""What goes wrong for a reason that its user can remove."""

from __future__ import annotations


class BenchError(Exception):
    """The text is for whoever started the benchmark: what is wrong and what helps. No traceback is needed."""
