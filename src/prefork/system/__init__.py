"""Blocking system calls: the only way in which prefork reaches processes, signals, sockets and files. No asyncio."""
