"""prefork: the pre-forking, non-blocking TCP server. The names in `__all__` are the public ones; nothing else is."""

__version__ = "0.1.0"
