"""gevent's WSGIServer, with the standard library patched: HOST PORT."""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402  # after the patch, as gevent asks for
import sys  # noqa: E402
import time  # noqa: E402

from gevent.pywsgi import WSGIServer  # noqa: E402


def answer(environment, start_response):
    if environment["PATH_INFO"] == "/slow":
        time.sleep(2)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


if __name__ == "__main__":
    WSGIServer((sys.argv[1], int(sys.argv[2])), answer, log=None).serve_forever()
