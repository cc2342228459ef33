"""Imported by Python before the server: a child that is forked while the file in INJECT_CATCH is there takes it away,
and waits until it is traced. Only the child does anything, and nothing without that file."""

import os
import signal

#: Prefork holds all signals back around a fork, this one, too, which means nothing to it.
GO = signal.SIGRTMIN + 7


def _wait_to_be_traced(catch: str) -> None:
    try:
        os.unlink(catch)
    except FileNotFoundError:
        return
    with open(f"{catch}.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{catch}.new", f"{catch}.caught")
    signal.sigwait({GO})


if "INJECT_CATCH" in os.environ:
    os.register_at_fork(after_in_child=lambda: _wait_to_be_traced(os.environ["INJECT_CATCH"]))
