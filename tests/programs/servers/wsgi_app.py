"""An application for servers of WSGI."""

import os


def app(environment, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
