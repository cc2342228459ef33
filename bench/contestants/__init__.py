"""The servers that are measured: one script each, all called in the same way, each prints its port and serves.

Each is what its library's own documentation shows, in its own idiom, with the library's defaults. What all of them are
given is in `common.py`; `bench/roster.py` lists them.
"""
