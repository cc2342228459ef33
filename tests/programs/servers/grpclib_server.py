"""grpclib, with `graceful_exit` as its documentation starts it: HOST PORT.

The service is written by hand, because what protoc would make of it needs a compiler.
"""

import asyncio
import os
import sys

from google.protobuf.wrappers_pb2 import StringValue
from grpclib.const import Cardinality, Handler
from grpclib.server import Server
from grpclib.utils import graceful_exit


class Echo:
    async def answer(self, stream):
        request = await stream.recv_message()
        await stream.send_message(StringValue(value=f"{request.value} {os.getpid()}"))

    def __mapping__(self):
        return {"/tests.Echo/Answer": Handler(self.answer, Cardinality.UNARY_UNARY, StringValue, StringValue)}


async def main():
    server = Server([Echo()])
    with graceful_exit([server]):
        await server.start(sys.argv[1], int(sys.argv[2]))
        await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
