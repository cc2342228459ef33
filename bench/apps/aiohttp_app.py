"""The application that aiohttp is measured with, by `web.run_app`: 13 bytes for each GET. Called with HOST PORT."""

from __future__ import annotations

import sys

from aiohttp import web


async def answer(request: web.Request) -> web.Response:
    return web.Response(text="hello, world\n")


def main() -> None:
    app = web.Application()
    app.router.add_get("/", answer)
    web.run_app(app, host=sys.argv[1], port=int(sys.argv[2]), print=None)


if __name__ == "__main__":
    main()
