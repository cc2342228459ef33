"""What each path answers: metrics, health, the status as JSON, and the page.

Nothing here changes the server, so there is no method but GET and HEAD.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from prometheus_client.metrics_core import Metric

from ..net.server import TCPServer
from ..system.netstat import listen_overflows
from . import exposition
from .families import families
from .health import unready_reason
from .http import Request, Response, text
from .page import FIELDS, page
from .server import make_server
from .service_families import service_families
from .service_totals import service_totals
from .supervisor_link import Snapshot, Snapshots

#: Seconds that a client waits for the supervisor's answer. A health check has an answer of its own by then.
ANSWER_TIMEOUT = 5.0
HEALTH_TIMEOUT = 2.0
_JSON = "application/json"


def make_pages(snapshots: Snapshots) -> TCPServer:
    """Return a server, in the running loop, of all that is answered here."""

    async def answer(request: Request) -> Response:
        return await respond(request, snapshots)

    return make_server(answer)


async def respond(request: Request, snapshots: Snapshots) -> Response:
    """Return the response to a request; 503 if the supervisor does not answer in time."""
    route = _ROUTES.get(request.path)
    if route is None:
        return text(HTTPStatus.NOT_FOUND, f"there are {', '.join(_ROUTES)}")
    if request.method not in ("GET", "HEAD"):
        allowed = {"Allow": "GET, HEAD"}
        return Response(HTTPStatus.METHOD_NOT_ALLOWED, b"GET and HEAD are answered\n", fields=allowed)
    healthy = request.path in ("/healthz", "/readyz")
    try:
        snapshot = await snapshots.get(HEALTH_TIMEOUT if healthy else ANSWER_TIMEOUT)
    except TimeoutError:
        if request.path == "/":
            return _page_of(HTTPStatus.SERVICE_UNAVAILABLE, None)
        return text(HTTPStatus.SERVICE_UNAVAILABLE, "the supervisor does not answer")
    return route(request, snapshot)


def _metrics(request: Request, snapshot: Snapshot) -> Response:
    content_type = exposition.accepted_type(request.fields.get("accept", ""))
    if content_type not in snapshot.rendered:
        found = families(snapshot.status, listen_overflows())
        found += _service_families(snapshot)
        snapshot.rendered[content_type] = exposition.write(found, content_type)
    return Response(HTTPStatus.OK, snapshot.rendered[content_type], content_type)


def _service_families(snapshot: Snapshot) -> list[Metric]:
    return service_families(snapshot.status["service_metrics"])


def _health(request: Request, snapshot: Snapshot) -> Response:
    return text(HTTPStatus.OK, "ok")


def _readiness(request: Request, snapshot: Snapshot) -> Response:
    reason = unready_reason(snapshot.status)
    return text(HTTPStatus.SERVICE_UNAVAILABLE, reason) if reason else text(HTTPStatus.OK, "ready")


def _status(request: Request, snapshot: Snapshot) -> Response:
    if _JSON not in snapshot.rendered:
        # `now` is this machine's time: a browser's own clock may be wrong.
        shown = {name: value for name, value in snapshot.status.items() if name != "service_metrics"}
        shown |= {"service": service_totals(_service_families(snapshot)), "now": round(snapshot.at, 3)}
        snapshot.rendered[_JSON] = json.dumps(shown).encode()
    return Response(HTTPStatus.OK, snapshot.rendered[_JSON], _JSON)


def _page(request: Request, snapshot: Snapshot) -> Response:
    return _page_of(HTTPStatus.OK, snapshot.status)


def _page_of(status: HTTPStatus, shown: Mapping[str, Any] | None) -> Response:
    return Response(status, page(shown), "text/html; charset=utf-8", FIELDS)


_Route = Callable[[Request, Snapshot], Response]
_ROUTES: Mapping[str, _Route] = {
    "/metrics": _metrics,
    "/healthz": _health,
    "/readyz": _readiness,
    "/status.json": _status,
    "/": _page,
}
