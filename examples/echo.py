"""Send every line back: the smallest service.

prefork serve echo:handle --bind :9000
nc localhost 9000
"""

from prefork import Stream


async def handle(stream: Stream) -> None:
    async for line in stream:
        stream.write(line)
