"""Build the status page: one self-contained HTML document, and the header fields that confine it.

No sockets here: the caller serves it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from .plain_tables import plain_tables


def _read(name: str) -> str:
    return resources.files(__package__).joinpath("static", name).read_text(encoding="utf-8")


def _source(code: str) -> str:
    """Return what permits exactly this inline script or style sheet (CSP level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


_STYLE = _read("page.css")
_SCRIPT = "\n".join(map(_read, ("numbers.js", "parts.js", "page.js")))
# No template language, because braces of CSS and JavaScript stay.
_BEFORE, _AFTER = _read("page.html").replace("{style}", _STYLE).replace("{script}", _SCRIPT).split("{tables}")

#: The page loads nothing but `status.json` from where it came, runs no other script, and stands in no frame.
POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_source(_SCRIPT)}",
        f"style-src {_source(_STYLE)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

#: The fields of the page's head, besides those of every response.
FIELDS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


def page(status: Mapping[str, Any] | None) -> bytes:
    """Return the page; without JavaScript it shows `status`, or that the server does not answer if that is None."""
    return f"{_BEFORE}{plain_tables(status)}{_AFTER}".encode()
