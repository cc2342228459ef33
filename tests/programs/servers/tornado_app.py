"""Tornado's HTTPServer on its own IOLoop: HOST PORT, or HOST PORT CERTIFICATE KEY."""

import asyncio
import os
import sys

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler


class Answer(RequestHandler):
    def get(self):
        self.write(str(os.getpid()))


class AnswerSlowly(RequestHandler):
    async def get(self):
        await asyncio.sleep(2)
        self.write(str(os.getpid()))


async def main():
    ssl_options = dict(zip(("certfile", "keyfile"), sys.argv[3:], strict=True)) if sys.argv[3:] else None
    server = HTTPServer(Application([("/", Answer), ("/slow", AnswerSlowly)]), ssl_options=ssl_options)
    server.listen(int(sys.argv[2]), sys.argv[1])
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
