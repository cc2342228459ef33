"""The proof that prefork loses no connection: load, faults, and three witnesses that have to agree.

Run by `make soak`, never shipped. `docs/soak.md` says how it measures, and what it measured last.
"""
