"""Tornado's HTTPServer on its own IOLoop: HOST PORT."""

import asyncio
import os
import sys

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler


class Answer(RequestHandler):
    def get(self):
        self.write(str(os.getpid()))


async def main():
    server = HTTPServer(Application([("/", Answer)]))
    server.listen(int(sys.argv[2]), sys.argv[1])
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
