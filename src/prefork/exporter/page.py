"""The status page, as it is sent: what a browser shows at `/`.

It polls /status.json; the numbers of a moment are in it for clients without scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from .http import Response, text


def render(status: Mapping[str, Any]) -> Response:
    """Return the page with the numbers of `status`."""
    return text(HTTPStatus.OK, f"prefork {status['version']}: see /metrics, /status.json, /healthz and /readyz")
