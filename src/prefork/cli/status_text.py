"""The reply to `status` as text for a person: the server, its listeners, its account, its slots and its workers.

Formats only. A reply may come from an older or newer server during an upgrade, so a key that is missing is no error.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..text import count_of, format_bytes, format_duration

_COLUMNS = ("SLOT", "PID", "GEN", "STATE", "AGE", "OPEN", "SERVED", "REFUSED", "FAILED", "LATE", "RSS", "CPU", "LAG")


def describe_status(reply: Mapping[str, Any]) -> str:
    lines = [_head(reply), *_news(reply)]
    lines += [f"listening on {each}{_queue(each, reply)}" for each in reply["listeners"]]
    lines += _account(reply)
    lines += _table([_COLUMNS, *(_worker(each) for each in _sorted(reply["workers"]))])
    lines += [_slot(each) for each in reply.get("slots", ()) if each["restarts"] or each["retry_in"] is not None]
    return "\n".join(lines)


def _head(reply: Mapping[str, Any]) -> str:
    state = reply["state"].replace("_", " ") + (", reloading" if reply["reloading"] else "")
    state += f", drains in {format_duration(reply['drains_in'])}" if reply.get("drains_in") is not None else ""
    state += ", suspended" if reply.get("suspended") else ""
    target = f" of {reply['target']}" if reply.get("target") else ""
    config = f", config {reply['config']}" if reply.get("config") else ""
    return (
        f"prefork {reply['version']}{target}, supervisor {reply['pid']}, {state}, generation {reply['generation']}, "
        f"up {format_duration(reply['uptime'])}, streams {reply.get('streams', 'pure Python')}{config}"
    )


def _news(reply: Mapping[str, Any]) -> list[str]:
    """Return what an operator should know first: what goes on, and what went wrong."""
    lines = []
    if reply.get("predecessor") is not None:
        lines.append(f"supervisor {reply['predecessor']} drains, because this one took over from it")
    last = (reply.get("reloads") or {}).get("last")
    if last and last["result"] == "failed":
        ago = format_duration(max(0.0, time.time() - last["at"]))
        lines.append(f"the last reload failed {ago} ago: {last['reason']}")
    ready = sum(worker["state"] == "ready" for worker in reply["workers"])
    wanted = reply.get("workers_target", ready)
    if ready < wanted:
        lines.append(f"{ready} of {count_of(wanted, 'worker')} ready")
    if reply["deaths"]:
        deaths = ", ".join(f"{count} {kind}" for kind, count in sorted(reply["deaths"].items()))
        lines.append(f"deaths of workers: {deaths}")
    return lines


def _queue(listener: str, reply: Mapping[str, Any]) -> str:
    address = listener.partition(" (")[0]
    for queue in reply.get("queues", ()):
        if queue["listener"] == address:
            return f", {queue['waiting']} of {queue['limit']} waiting"
    return ""


def _account(reply: Mapping[str, Any]) -> list[str]:
    totals = reply.get("totals")
    if not totals:
        return []
    limit = f" of {reply['limit']}" if reply.get("limit") else ""
    closed = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in totals["closed"].items() if count)
    return [
        f"connections: {totals['accepted']} accepted = {totals['open']} open{limit} + {sum(totals['closed'].values())} "
        f"closed{f' ({closed})' if closed else ''}",
        f"bytes: {format_bytes(totals['received'])} received, {format_bytes(totals['sent'])} sent",
    ]


def _sorted(workers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(workers, key=lambda each: (each["slot"], each["pid"]))


def _worker(worker: Mapping[str, Any]) -> Sequence[str]:
    lag = worker.get("lag")
    state = worker["state"] + (f" ({worker['missing']})" if worker.get("missing") else "")
    if worker.get("drain_left") is not None:
        state += f", {format_duration(worker['drain_left'])} left"
    state += f", paused: {worker['paused']}" if worker.get("paused") else ""
    values = (
        worker["slot"],
        worker["pid"],
        worker["generation"],
        state,
        format_duration(worker["age"]),
        worker["open"],
        worker["accepted"] - worker["refused"],
        worker["refused"],
        worker["handler_failures"],
        worker["deadlines"],
        format_bytes(worker["rss"]),
        format_duration(worker["cpu"]),
        None if lag is None else f"{lag['p50'] * 1000:.1f}/{lag['p99'] * 1000:.1f} ms",
    )
    return ["-" if value is None else str(value) for value in values]


def _slot(slot: Mapping[str, Any]) -> str:
    text = f"worker {slot['slot']}: {count_of(slot['restarts'], 'restart')}"
    if slot["last_exit"]:
        text += f", the last worker died: {slot['last_exit']}"
    if slot["retry_in"] is not None:
        text += f", starting in {slot['retry_in']:.1f} s"
    return text


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
