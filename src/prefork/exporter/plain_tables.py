"""Write a status as plain HTML, for clients without JavaScript: `curl`, text browsers.

Every value is escaped here; nothing else may write a value into HTML.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..text import escape_controls

#: The maximum number of rows of one table; the rest is in status.json.
ROWS = 1024

_WORKER_COLUMNS = ("slot", "pid", "state", "open", "accepted", "refused", "received", "sent", "rss", "age")


def plain_tables(status: Mapping[str, Any] | None) -> str:
    """Return tables of the server, its workers, its account, refusals and certificates; a sentence if there is none."""
    if status is None:
        return "<div><h1>prefork</h1><p>The server does not answer.</p></div>"
    totals = status.get("totals", {})
    closed = totals.get("closed", {})
    return "".join(
        (
            f"<div><h1>prefork: {_text(status.get('state'))}</h1>",
            _table("Server", ("", ""), _facts(status)),
            _table("Workers", _WORKER_COLUMNS, _workers(status)),
            _table(
                "Account of connections",
                ("", "count"),
                [("accepted", totals.get("accepted")), ("open", totals.get("open")), *closed.items()],
            ),
            _table("Refused", ("reason", "count"), totals.get("refusals", {}).items()),
            _table("Ends of workers", ("cause", "count"), status.get("deaths", {}).items()),
            _table("Certificates", ("file", "expires"), _certificates(status)),
            '<p><a href="status.json">status.json</a> <a href="metrics">metrics</a></p></div>',
        )
    )


def _text(value: object) -> str:
    return "-" if value is None else html.escape(escape_controls(value))


def _facts(status: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    totals = status.get("totals", {})
    ready = sum(worker.get("state") == "ready" for worker in status.get("workers", ()))
    yield "target", status.get("target")
    yield "listening on", ", ".join(map(str, status.get("listeners", ())))
    yield "uptime in seconds", status.get("uptime")
    yield "generation", status.get("generation")
    yield "workers ready", f"{ready} of {status.get('workers_target')}"
    yield "connections", f"{totals.get('open')} of {status.get('limit') or 'any number'}"
    for queue in status.get("queues", ()):
        yield f"queue of {queue.get('listener')}", f"{queue.get('waiting')} of {queue.get('limit')}"
    last = status.get("reloads", {}).get("last")
    if last:
        yield "last reload", last.get("reason") or last.get("result")


def _workers(status: Mapping[str, Any]) -> Iterable[Sequence[object]]:
    for worker in status.get("workers", ()):
        yield [worker.get(column) for column in _WORKER_COLUMNS]


def _certificates(status: Mapping[str, Any]) -> Iterable[tuple[object, str]]:
    for each in status.get("certificates", ()):
        yield each.get("file"), _day(each.get("not_after"))


def _day(seconds: object) -> str:
    """Return a time in Unix seconds as a day in UTC, or `-` if no calendar has it."""
    try:
        return datetime.fromtimestamp(float(str(seconds)), UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return "-"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table, or nothing if it has no row."""
    lines = [
        f"<tr><th scope=row>{_text(row[0])}</th>{''.join(f'<td>{_text(value)}</td>' for value in row[1:])}</tr>"
        for row, _ in zip(rows, range(ROWS), strict=False)
    ]
    if not lines:
        return ""
    head = "".join(f"<th scope=col>{_text(column)}</th>" for column in columns)
    return (
        f"<table><caption>{_text(title)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )
