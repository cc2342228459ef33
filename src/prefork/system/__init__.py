"""Blocking system calls: the only place that forks, kills, waits, binds and opens files. No asyncio."""
