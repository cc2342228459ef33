"""Report the connections of a process to OpenTelemetry: `prefork.otel.instrument()`, with the extra `prefork[otel]`.

The names are those that the semantic conventions have for Kestrel, with `prefork` for `kestrel`. The meter provider is
the service's; nothing here exports anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ._version import __version__
from .core.account import CloseReason
from .net.service_events import ConnectionClosed, ConnectionOpened, HandlerFailed, ServiceEvent
from .net.subscribers import subscribe

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider

__all__ = ["instrument"]

#: The bounds that the semantic conventions advise for the duration of a connection, in seconds.
_BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
_Attributes: TypeAlias = dict[str, str | int]


def instrument(meter_provider: MeterProvider | None = None) -> Callable[[], None]:
    """Measure the connections of this process by `meter_provider`, or the global one; return what ends that.

    Call it in each worker, such as in `start()` of a lifespan object, after the provider was made there: its threads
    do not survive a fork. Each worker measures its own connections, so its resource needs a `service.instance.id` of
    its own. Raises ImportError without opentelemetry-api.
    """
    from opentelemetry import metrics

    return subscribe(_Instruments(metrics.get_meter("prefork", __version__, meter_provider)).record)


class _Instruments:
    """The instruments of one meter."""

    def __init__(self, meter: Meter) -> None:
        self._active = meter.create_up_down_counter(
            "prefork.active_connections", "{connection}", "Connections that are open."
        )
        self._duration = meter.create_histogram(
            "prefork.connection.duration",
            "s",
            "Time from accept to the end of a connection.",
            explicit_bucket_boundaries_advisory=_BOUNDS,
        )
        self._rejected = meter.create_counter(
            "prefork.rejected_connections", "{connection}", "Connections that were refused at a limit."
        )
        self._traffic = meter.create_counter("prefork.network.io", "By", "Bytes of the connections that have ended.")
        self._failures = meter.create_counter("prefork.handler.failures", "{failure}", "Handlers that raised.")

    def record(self, event: ServiceEvent) -> None:
        match event:
            case ConnectionOpened():
                self._active.add(1, _of_address(event.local))
            case ConnectionClosed(id=0, reason=CloseReason.DONE):
                # A health check of a balancer, which only connected.
                pass
            case ConnectionClosed(id=0):
                self._rejected.add(1, {**_of_address(event.local), "error.type": event.reason})
            case ConnectionClosed():
                self._record_closed(event)
            case HandlerFailed():
                self._failures.add(1, {"error.type": type(event.exception).__qualname__})

    def _record_closed(self, event: ConnectionClosed) -> None:
        attributes = _of_address(event.local)
        if event.local:
            # Otherwise it was opened before anything was measured.
            self._active.add(-1, attributes)
        for count, direction in ((event.received, "receive"), (event.sent, "transmit")):
            self._traffic.add(count, {**attributes, "network.io.direction": direction})
        if event.tls:
            attributes["tls.protocol.version"] = event.tls.removeprefix("TLSv")
        if event.reason != CloseReason.DONE:
            attributes["error.type"] = event.reason
        self._duration.record(event.seconds, attributes)


def _of_address(local: str) -> _Attributes:
    """Return the attributes of the server's own address, as the semantic conventions name them."""
    host, colon, port = local.rpartition(":")
    if not colon or not port.isdecimal():
        return {"network.transport": "unix"} if local else {}
    return {"network.transport": "tcp", "server.address": host.strip("[]"), "server.port": int(port)}
