"""Descriptions of sessions: title, metadata, item count and last activity.

Title and metadata are marks. Their types are `TITLE` (the key is empty) and `METADATA` (the key is
a name). The value null means that there is no title, or no value with this name.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from cached_session.history.ops import Mark
from cached_session.history.session_name import split_name
from cached_session.history.session_ref import SessionRef
from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables import writes
from cached_session.journal.tables.sessions import session_ids, stored_id
from cached_session.journal.tables.states import PARKED, SHOWN, backwards
from cached_session.journal.tables.unfolded import UNFOLDED_ITEMS
from cached_session.journal.tables.writes import Author
from cached_session.models import SessionInfo

__all__ = ["METADATA", "TITLE", "SessionInfos", "read_infos", "write_marks"]

TITLE = "title"
METADATA = "metadata"
LATEST = f"(SELECT said_ms FROM ops WHERE {SHOWN} ORDER BY {backwards()} LIMIT 1)".replace(
    "session = ?", "session = sessions.id"
)
INFOS = (
    f"SELECT session_id, id, items + {UNFOLDED_ITEMS}, created_ms, {LATEST}, "
    f"(SELECT count(*) FROM waiting WHERE session = sessions.id AND state <> {PARKED}), "
    f"(SELECT count(*) FROM waiting WHERE session = sessions.id AND state = {PARKED}) "
    "FROM sessions"
)
WRITTEN = "EXISTS (SELECT 1 FROM frontier WHERE session = sessions.id AND (upto OR behind))"
"""The condition that selects sessions with an operation. A read of a session without any creates a
row of `sessions` too."""


def read_infos(conn: sqlite3.Connection, name: str | None = None) -> list[SessionInfo]:
    """Return the sessions with at least one operation, in the order of their creation. ``name``
    selects one session, with or without operations; the result is empty if the journal does not
    know it."""
    where, key = (WRITTEN, ()) if name is None else ("session_id = ?", (stored_id(name),))
    rows = conn.execute(f"{INFOS} WHERE {where} ORDER BY id", key).fetchall()
    names = session_ids(rows)
    return [_info(conn, own_name, row) for own_name, row in zip(names, rows, strict=True)]


def _info(conn: sqlite3.Connection, name: str, row: tuple[Any, ...]) -> SessionInfo:
    _, session, items, created_ms, latest_ms, pending, parked = row
    marks = dict(_described(conn, session))
    title = marks.pop((TITLE, ""), None)
    prefix, session_id = split_name(name)
    return SessionInfo(
        session_id=session_id,
        key_prefix=prefix,
        title=title if isinstance(title, str) else None,
        metadata={key: value for (_, key), value in marks.items() if value is not None},
        items=items,
        created_at=created_ms / 1000,
        last_activity=None if latest_ms is None else latest_ms / 1000,
        pending=pending,
        parked=parked,
    )


def _described(conn: sqlite3.Connection, session: int) -> Iterator[tuple[tuple[str, str], Any]]:
    for mark_type, key, value in conn.execute(
        "SELECT type, key, value FROM marks WHERE session = ? AND type IN (?, ?) ORDER BY 1, 2",
        (session, TITLE, METADATA),
    ):
        if mark_type == METADATA or not key:
            yield (mark_type, key), orjson.loads(value)


def write_marks(
    conn: sqlite3.Connection, author: Author, session_id: str, marks: Sequence[Mark]
) -> None:
    """Write several marks in one transaction. Each must be valid (`encode_mark`)."""
    for mark in marks:
        writes.write_mark(conn, author, session_id, mark)


class SessionInfos:
    """The titles, metadata and counts of a journal's sessions."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def all(self) -> list[SessionInfo]:
        """Return the sessions with at least one operation, in the order of their creation. The
        read runs in a thread."""
        return await self._runner.read_aside(read_infos)

    async def of(self, session: SessionRef) -> SessionInfo | None:
        """Return what is known about a session; None if the journal does not know it."""
        found = await self._runner.read(read_infos, session.name)
        return found[0] if found else None

    async def update(self, author: Author, session: SessionRef, marks: Sequence[Mark]) -> None:
        """Write several marks in one transaction. Each must be valid (`encode_mark`)."""
        await self._runner.write(write_marks, author, session.name, marks)
