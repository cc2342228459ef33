"""Services that are served while calls fail: each echoes frames of `soak/payload.py` and refuses a damaged one."""
