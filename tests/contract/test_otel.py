"""`prefork.otel`: the connections of a process as instruments of OpenTelemetry, by the names that users expect."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import prefork


def points(reader: InMemoryMetricReader) -> dict[str, dict[frozenset[tuple[str, Any]], Any]]:
    """Return what was measured: by instrument and attributes, a number, or the count of a histogram."""
    data = reader.get_metrics_data()
    assert data is not None
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    assert scope.scope.name == "prefork"
    return {
        metric.name: {
            frozenset((point.attributes or {}).items()): getattr(point, "value", getattr(point, "count", None))
            for point in metric.data.data_points
        }
        for metric in scope.metrics
    }


async def handle(stream: prefork.Stream) -> None:
    line = await stream.readline()
    if line == b"fail\n":
        raise ZeroDivisionError
    await stream.send(line)
    await stream.readline()


async def exchange(port: int, line: bytes) -> tuple[bytes, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(line)
    return await reader.readline(), writer


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_connections_are_measured() -> None:
    reader = InMemoryMetricReader()
    stop = prefork.otel.instrument(MeterProvider([reader]))

    async def main() -> None:
        limits = prefork.Limits(max_connections=1, at_limit="refuse")
        async with prefork.TCPServer(handle, limits=limits) as server:
            server.listen(0, "127.0.0.1")
            port = server.sockets[0].getsockname()[1]
            address = {("network.transport", "tcp"), ("server.address", "127.0.0.1"), ("server.port", port)}
            answer, writer = await exchange(port, b"hello\n")
            assert answer == b"hello\n"
            assert points(reader)["prefork.active_connections"] == {frozenset(address): 1}
            refused, other = await exchange(port, b"")
            assert refused == b""
            other.close()
            writer.close()
            while server.connections:
                await asyncio.sleep(0.001)
            failed, other = await exchange(port, b"fail\n")
            assert failed == b""
            other.close()
            while server.connections:
                await asyncio.sleep(0.001)
            found = points(reader)
            assert found["prefork.active_connections"] == {frozenset(address): 0}
            assert found["prefork.rejected_connections"] == {
                frozenset({*address, ("error.type", "max_connections")}): 1
            }
            assert found["prefork.connection.duration"] == {
                frozenset(address): 1,
                frozenset({*address, ("error.type", "handler_failed")}): 1,
            }
            assert found["prefork.network.io"] == {
                frozenset({*address, ("network.io.direction", "receive")}): 11,
                frozenset({*address, ("network.io.direction", "transmit")}): 6,
            }
            assert found["prefork.handler.failures"] == {frozenset({("error.type", "ZeroDivisionError")}): 1}

    try:
        asyncio.run(main())
    finally:
        stop()
