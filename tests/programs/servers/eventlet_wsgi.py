"""eventlet's WSGI server, with the standard library patched: HOST PORT."""

import eventlet

eventlet.monkey_patch()

import os  # noqa: E402  # after the patch, as eventlet asks for
import sys  # noqa: E402

from eventlet import wsgi  # noqa: E402


def answer(environment, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


if __name__ == "__main__":
    wsgi.server(eventlet.listen((sys.argv[1], int(sys.argv[2]))), answer, log_output=False)
