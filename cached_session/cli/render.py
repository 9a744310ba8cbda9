"""Text and JSON for people and programs. Rich, where it is installed, only draws."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cached_session import Entry, Status, SyncReport

WIDTH = 100  # characters of an item's text that stand on its line


def print_json(value: Any) -> None:
    """One dataclass, indented."""
    print(json.dumps(dataclasses.asdict(value), indent=2, default=str, ensure_ascii=False))


def print_items(items: Sequence[Any]) -> None:
    """One JSON value a line, as stored."""
    for item in items:
        print(json.dumps(item, ensure_ascii=False))


def print_status(status: Status) -> None:
    """What a person wants to know first, then a line for each session."""
    print(f"journal  {status.journal}")
    if status.server:
        print(f"server   {status.server} ({status.state})")
    if status.last_success is not None:
        print(f"synced   {_when(status.last_success)}")
    if status.last_error:
        print(f"trouble  {status.last_error}")
    print(
        f"{len(status.sessions)} sessions, {status.items} items, {status.pending} pending"
        + (f" (the oldest for {_age(status.oldest_pending_age)})" if status.pending else "")
        + (f", {status.parked} parked" if status.parked else "")
        + (f", {status.absent} absent" if status.absent else "")
    )
    rows = [
        (name, str(one.items), str(one.pending), str(one.parked), _age(one.oldest_pending_age))
        for name, one in sorted(status.sessions.items())
    ]
    if rows:
        _table(("session", "items", "pending", "parked", "oldest pending"), rows)


def print_entries(session_id: str, entries: Sequence[Entry]) -> None:
    """One line an item: rank, when, who wrote it, whether the server has it, the text."""
    if not entries:
        print(f"{session_id}: nothing is known of it here")
    for entry in entries:
        print(
            f"{entry.rank:>6}  {_when(entry.said_at)}  {entry.writer[:6]}  "
            f"{entry.sync_state:8}  {gist(entry.item)}"
        )


def print_report(report: SyncReport, what: str) -> None:
    """What a sync did."""
    print(
        f"synced {what} in {report.seconds:.1f} s: {report.pushed} operations sent, "
        f"{report.pulled} fetched" + (f", {report.parked} parked" if report.parked else "")
    )


def gist(item: Any) -> str:
    """A line's worth of an item: who, and what was said, called or answered."""
    if not isinstance(item, dict):
        return _cut(json.dumps(item, ensure_ascii=False))
    if item.get("type") == "function_call":
        return _cut(f"calls {item.get('name')}({item.get('arguments')})")
    if "output" in item:
        return _cut(f"gives {item['output']}")
    content = item.get("content")
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        content = " ".join(part for part in parts if isinstance(part, str))
    if isinstance(content, str) and content:
        return _cut(f"{item.get('role', item.get('type', '?'))}: {content}")
    return _cut(json.dumps(item, ensure_ascii=False))


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A sign of life on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        print(f"{what} ...", file=sys.stderr)
        yield
        return
    with Console(stderr=True).status(what):
        yield


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    for row in [header, *rows]:
        first, *rest = (
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *rest]))


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def _when(moment: Any) -> str:
    if isinstance(moment, (int, float)):
        moment = datetime.fromtimestamp(moment, tz=timezone.utc)
    if isinstance(moment, datetime):
        return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return str(moment)
