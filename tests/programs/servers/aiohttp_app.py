"""aiohttp by `web.run_app`: HOST PORT, or --path PATH, or HOST PORT CERTIFICATE KEY."""

import asyncio
import os
import ssl
import sys

from aiohttp import web


async def answer(request):
    return web.Response(text=str(os.getpid()))


async def answer_slowly(request):
    await asyncio.sleep(2)
    return await answer(request)


def main():
    app = web.Application()
    app.router.add_get("/", answer)
    app.router.add_get("/slow", answer_slowly)
    where = {"path": sys.argv[2]} if sys.argv[1] == "--path" else {"host": sys.argv[1], "port": int(sys.argv[2])}
    if sys.argv[3:]:
        where["ssl_context"] = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        where["ssl_context"].load_cert_chain(*sys.argv[3:])
    web.run_app(app, print=None, **where)


if __name__ == "__main__":
    main()
