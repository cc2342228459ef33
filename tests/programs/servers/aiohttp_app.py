"""aiohttp by `web.run_app`: HOST PORT."""

import os
import sys

from aiohttp import web


async def answer(request):
    return web.Response(text=str(os.getpid()))


def main():
    app = web.Application()
    app.router.add_get("/", answer)
    web.run_app(app, host=sys.argv[1], port=int(sys.argv[2]), print=None)


if __name__ == "__main__":
    main()
