"""The subcommands about single connections and tasks of a running server: ask by `console/`, and make text of it.

Which subcommands there are is in `server_commands.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from ..checks import reject
from ..console.connections import Connections, read_connections
from ..console.joining import SORT_KEYS, Row, facts_of, select
from ..console.kicking import AmbiguousIdError, Kicked, kick_id, kick_peers, parse_id
from ..console.servers import Attachment
from ..console.stacks import WorkerStacks, read_stacks
from ..core.console_protocol import Stack
from ..core.kicking import PeerFilter
from ..errors import ExitCode, ServiceError
from ..text import count_of, format_bytes, format_duration
from . import values
from .servers import find_socket

#: What log lines name as the sender.
BY = "prefork kick"
_HEAD = ("ID", "PEER", "LISTENER", "WORKER", "PHASE", "AGE", "IDLE", "RX", "TX", "UNSENT", "TLS")
_NUMERIC = {"WORKER", "AGE", "IDLE", "RX", "TX", "UNSENT"}


# --- connections ------------------------------------------------------------------------------------------------------


def connections(
    control: str,
    as_json: bool,
    worker: str | None = None,
    peer: tuple[str, ...] = (),
    sort: str = "id",
    limit: str = "1000",
    detail: str | None = None,
) -> tuple[str, int]:
    """Show the connections of a server, or of one all that the kernel knows."""
    slot = None if worker is None else values.parse_int("--worker", worker)
    peers = _parse_peers("--peer", peer) if peer else None
    most = values.parse_int("--limit", limit)
    if most < 0:
        reject("--limit", limit, "must be 0 or more (0: no limit)")
    if sort.removeprefix("-") not in SORT_KEYS:
        reject("--sort", sort, f"expected one of {', '.join(SORT_KEYS)}, or -KEY for the reverse order")
    with Attachment(find_socket(control)) as attachment:
        _require_slot(slot, attachment)
        found = read_connections(attachment)
    if detail is not None:
        return _detail(found.rows, detail, as_json)
    shown, more = select(found.rows, slot, peers, sort, most)
    if as_json:
        told = {"ok": True, "connections": [each.as_json() for each in shown], "more": more}
        rest = {"complete": found.complete, "stale": found.stale, "unclaimed": found.unclaimed}
        return json.dumps(told | rest), 0
    table = [_HEAD, *([*_cells(each)] for each in shown)]
    return "\n".join([*render(table, _NUMERIC), *_notes(found, more)]), 0


def _require_slot(slot: int | None, attachment: Attachment) -> None:
    if slot is not None and slot not in {each.slot for each in attachment.workers}:
        reject("--worker", str(slot), "there is no such worker")


def _cells(row: Row) -> list[str]:
    return [
        row.id or "-",
        row.peer,
        row.listener or "-",
        str(row.worker),
        f"{row.phase} (stale)" if row.stale else row.phase,
        *(format_duration(each) for each in (row.age, row.idle)),
        *(format_bytes(each) for each in (row.rx, row.tx, row.unsent)),
        row.tls or "-",
    ]


def _notes(found: Connections, more: int) -> list[str]:
    notes = []
    if more:
        notes.append(f"and {count_of(more, 'connection')} more (--limit)")
    if found.stale:
        slots = ", ".join(map(str, found.stale))
        notes.append(f"no answer from worker {slots}: its rows are what the kernel knows")
    if not found.complete:
        notes.append("the kernel did not tell of all sockets: some facts are missing")
    if found.unclaimed and not found.stale:
        notes.append(f"no worker has {count_of(found.unclaimed, 'further connection')} of these ports")
    return notes


def render(table: Sequence[Sequence[str]], numeric: set[str]) -> list[str]:
    """Return the lines of a table whose first row is its head; columns in `numeric` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = [name in numeric for name in table[0]]
    return [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in table
    ]


def _detail(rows: list[Row], name: str, as_json: bool) -> tuple[str, int]:
    matching = [each for each in rows if name in (each.id, each.peer)]
    if not matching:
        return _tell(as_json, f"there is no connection {name}")
    told = [{**each.as_json(), "kernel": facts_of(each.kernel)} for each in matching]
    if as_json:
        return json.dumps({"ok": True, "connections": told}), 0
    return "\n".join(line for each in told for line in _describe(each)), 0


def _tell(as_json: bool, text: str) -> tuple[str, int]:
    return (json.dumps({"ok": False, "error": text}) if as_json else text), ExitCode.NOTHING_FOUND


def _describe(value: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, each in value.items():
        if isinstance(each, dict):
            lines += [f"{indent}{name.replace('_', ' ')}:", *_describe(each, indent + "  ")]
        else:
            lines.append(f"{indent}{name.replace('_', ' ')}: {_value(name, each)}")
    return lines


def _value(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in ("age", "idle"):
        return format_duration(value)
    if name.startswith("rtt"):
        return f"{value * 1000:.3g} ms"
    return f"{value:.3f} s" if isinstance(value, float) else str(value)


# --- kick -------------------------------------------------------------------------------------------------------------


def kick(control: str, as_json: bool, peer: str, yes: bool = False) -> tuple[str, int]:
    """Abort a connection by its id, or those of a peer; several only after a question, or with --yes."""
    try:
        parse_id(peer)
        is_id = True
    except ValueError:
        is_id = False
    peers = None if is_id else _parse_peers("PEER", [peer])
    with Attachment(find_socket(control)) as attachment:
        if not any(each.has_console for each in attachment.workers):
            raise ServiceError("kick: the connections are the program's own, which prefork cannot end")
        if peers is None:
            try:
                done = kick_id(attachment, peer, BY)
            except AmbiguousIdError as exc:
                raise ServiceError(f"kick: {exc}") from None
        else:
            if not peers.names_one and not yes and not _confirm(attachment, peers, peer):
                return _tell(as_json, "nothing was kicked")
            done = kick_peers(attachment, [peer], BY)
    return _kicked(done, peer, attachment.predecessor, as_json)


def _confirm(attachment: Attachment, peers: PeerFilter, peer: str) -> bool:
    shown, _ = select(read_connections(attachment).rows, peers=peers)
    if not shown:
        return True
    what = f"{count_of(len(shown), 'connection')} of {peer}"
    if not sys.stdin.isatty():
        reject("PEER", peer, f"{what} would be aborted, and there is no terminal for the question (--yes)")
    return click.confirm(f"Abort {what}?", err=True)


def _kicked(done: Kicked, peer: str, predecessor: int | None, as_json: bool) -> tuple[str, int]:
    if done.silent:
        slots = ", ".join(map(str, done.silent))
        raise ServiceError(f"kick: aborted {count_of(done.count, 'connection')}; no answer from worker {slots}")
    if not done.count:
        drains = "" if predecessor is None else f"; those of supervisor {predecessor}, which drains, cannot be kicked"
        return _tell(as_json, f"no connection of {peer}{drains}")
    return (json.dumps({"ok": True, "kicked": done.count}) if as_json else f"kicked: {done.count}"), 0


def _parse_peers(option: str, peers: Sequence[str]) -> PeerFilter:
    try:
        return PeerFilter(peers)
    except ValueError as exc:
        reject(option, ", ".join(peers), str(exc))


# --- stacks -----------------------------------------------------------------------------------------------------------


def stacks(control: str, as_json: bool, worker: str | None = None) -> tuple[str, int]:
    """Show what the tasks of a server's workers wait for."""
    slot = None if worker is None else values.parse_int("--worker", worker)
    path = find_socket(control)
    with Attachment(path) as attachment:
        _require_slot(slot, attachment)
        found = read_stacks(path, attachment, slot)
    if as_json:
        return json.dumps({"ok": True, "workers": [_as_json(each) for each in found]}), 0
    return "\n".join(line for each in found for line in _worker_lines(each)), 0


def _as_json(found: WorkerStacks) -> dict[str, Any]:
    head = {"slot": found.worker.slot, "pid": found.worker.pid, "tasks": found.tasks, "stale": found.stale}
    stacks = [{**each._asdict(), "frames": [frame._asdict() for frame in each.frames]} for each in found.stacks]
    return {**head, "stacks": stacks, "lines": found.lines}


def _worker_lines(found: WorkerStacks) -> list[str]:
    head = f"worker {found.worker.slot} (pid {found.worker.pid})"
    if found.stale:
        return [f"{head} does not answer; its threads:", *(f"  {line}" for line in found.lines)]
    return [f"{head}: {count_of(found.tasks, 'task')}", *(line for each in found.stacks for line in _stack_lines(each))]


def _stack_lines(stack: Stack) -> list[str]:
    of = f" of {', '.join(stack.peers)}{', ...' if stack.tasks > len(stack.peers) else ''}" if stack.peers else ""
    if stack.thread:
        head = f"thread {stack.name}"
    else:
        named = stack.name if stack.tasks == 1 else f"{stack.tasks} tasks like {stack.name}"
        head = f"{named}{of}, waiting for {stack.waits_for}"
    return [f"  {head}", *(f"    {each.file}:{each.line} {each.function}" for each in stack.frames)]
