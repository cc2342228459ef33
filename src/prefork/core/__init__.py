"""Decisions, pure: no I/O, no clock, no asyncio; time is an argument."""
