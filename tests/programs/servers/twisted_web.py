"""Twisted's web server: HOST PORT, and `asyncio` for the reactor on asyncio's loop instead of the default one."""

import os
import sys

if sys.argv[3:] == ["asyncio"]:
    from twisted.internet import asyncioreactor

    asyncioreactor.install()

from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site


class Answer(Resource):
    isLeaf = True

    def render_GET(self, request):
        if request.path == b"/slow":
            reactor.callLater(2, self.finish, request)
            return NOT_DONE_YET
        return str(os.getpid()).encode()

    def finish(self, request):
        request.write(str(os.getpid()).encode())
        request.finish()


def main():
    reactor.listenTCP(int(sys.argv[2]), Site(Answer()), interface=sys.argv[1])
    reactor.run()


if __name__ == "__main__":
    main()
