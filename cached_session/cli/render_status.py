"""The status of a journal, as a table on a terminal, as lines, or as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cached_session.cli import output
from cached_session.cli.escape import safe, safe_id
from cached_session.humanize import count, lasting

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cached_session import Status

STATES = {
    "synced": "green",
    "waiting": "yellow",
    "offline": "red",
    "unauthorized": "red",
    "parked": "bold red",
    "partial": "yellow",
    "local": "dim",
}
FACTS = {"error": "red", "salvaged": "yellow"}
COLUMNS = ("session", "items", "pending", "parked", "age", "state")
PREFIX = "prefix"
"""First column, if a session of the journal has a key prefix."""


def state_of(status: Status) -> str:
    """Return the state of one session as one word, from the data in the journal."""
    if status.parked:
        return "parked"
    if status.is_refused:
        return "unauthorized"
    if status.last_error:
        return "offline"
    if status.last_server is None:
        return "local"
    if status.pending:
        return "waiting"
    return "synced" if status.hydrated else "partial"


def print_status(status: Status) -> None:
    """Print the status of the journal, then one line per session."""
    if output.is_terminal():
        output.show(status_screen(status))
        return
    for line in status_lines(status):
        output.say(line)


def status_lines(status: Status) -> Iterator[str]:
    """Yield the lines of the status for output that is not a terminal."""
    for name, value in _facts(status):
        yield f"{name:8} {value}"
    yield _sum(status)
    rows = list(_rows(status))
    if rows:
        yield from output.table(_columns(status), rows)


def status_screen(status: Status) -> RenderableType:
    """Draw the status for a terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2))
    for name, value in _facts(status):
        head.add_row(Text(name, style="dim"), Text(value, style=FACTS.get(name, "")))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in _columns(status):
        is_text = name in (PREFIX, "session", "state")
        table.add_column(name, justify="left" if is_text else "right")
    for *cells, state in _rows(status):
        table.add_row(*map(Text, cells), Text(state, style=STATES[state]))
    parts: list[RenderableType] = [head, Text(_sum(status), style="bold")]
    return Group(*parts, table) if table.row_count else Group(*parts)


def _facts(status: Status) -> Iterator[tuple[str, str]]:
    yield "journal", safe(status.journal)
    if status.server or status.last_server:
        yield "server", safe(status.server or status.last_server or "")
    if status.last_success is not None:
        yield "synced", output.when(status.last_success)
    if status.last_error:
        since = f"for {lasting(status.failing_for)}: " if status.failing_for else ""
        yield "error", since + safe(status.last_error)
    if status.salvaged:
        yield "salvaged", safe(status.salvaged)


def _sum(status: Status) -> str:
    sessions = sum(len(one.sessions) for one in status.prefixes.values())
    return (
        f"{count(sessions, 'session')}, {count(status.items, 'item')}, "
        f"{status.pending} pending"
        + (f" (the oldest for {output.age(status.oldest_pending_age)})" if status.pending else "")
        + (f", {status.parked} parked" if status.parked else "")
        + (f", {status.absent} absent" if status.absent else "")
    )


def _columns(status: Status) -> tuple[str, ...]:
    return (PREFIX, *COLUMNS) if _has_prefix(status) else COLUMNS


def _has_prefix(status: Status) -> bool:
    return any(prefix and one.sessions for prefix, one in status.prefixes.items())


def _rows(status: Status) -> Iterator[tuple[str, ...]]:
    has_prefix = _has_prefix(status)
    for prefix, of_prefix in sorted(status.prefixes.items()):
        for session_id, one in sorted(of_prefix.sessions.items()):
            yield (
                *((safe_id(prefix),) if has_prefix else ()),
                safe_id(session_id),
                str(one.items),
                str(one.pending),
                str(one.parked),
                output.age(one.oldest_pending_age),
                state_of(one),
            )


def status_json(status: Status) -> dict[str, Any]:
    """Return the status of a journal as JSON output contains it: its sessions in one list."""
    sessions = [
        {"session_id": session_id, "key_prefix": prefix, **_facts_of(one)}
        for prefix, of_prefix in sorted(status.prefixes.items())
        for session_id, one in sorted(of_prefix.sessions.items())
    ]
    return {**_facts_of(status), "sessions": sessions}


def _facts_of(status: Status) -> dict[str, Any]:
    nested = ("sessions", "prefixes")
    return {name: value for name, value in vars(status).items() if name not in nested}
