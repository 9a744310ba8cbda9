"""The marks of a session: named values that are not items, such as the title.

For each type and key, the mark that is last in the order of stamp, writer and counter counts.
Readers ignore marks of unknown types, but the journal stores, sends and audits them too.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import orjson

from cached_session.history.ops import Dot, Mark, Operation
from cached_session.history.session_ref import SessionRef
from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.sessions import session_number

__all__ = ["MarkRow", "Marks", "read_marks", "store_mark"]


@dataclass(frozen=True)
class MarkRow:
    """The mark that counts for its type and key."""

    mark: Mark
    stamp: int
    dot: Dot


def store_mark(conn: sqlite3.Connection, session: int, op: Operation, mark: Mark) -> None:
    """Store a mark, unless the journal has a mark with the same type and key that is later in
    the order of marks."""
    value = orjson.dumps(mark.value).decode()
    conn.execute(
        "INSERT INTO marks VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
        "stamp = excluded.stamp, writer = excluded.writer, counter = excluded.counter, "
        "value = excluded.value WHERE (excluded.stamp, excluded.writer, excluded.counter) "
        "> (stamp, writer, counter)",
        (session, mark.type, mark.key, op.stamp, *op.dot, value),
    )


def read_marks(
    conn: sqlite3.Connection, session_id: str, mark_type: str | None = None, key: str | None = None
) -> list[MarkRow]:
    """Return the marks of a session, sorted by type and key. ``mark_type`` and ``key`` limit the
    result to marks with this type and with this key."""
    session = session_number(conn, session_id)
    rows = conn.execute(
        "SELECT type, key, value, stamp, writer, counter FROM marks WHERE session = ? "
        "AND type = coalesce(?, type) AND key = coalesce(?, key) ORDER BY type, key",
        (session, mark_type, key),
    ).fetchall()
    return [
        MarkRow(Mark(name, label, orjson.loads(value)), stamp, Dot(writer, counter))
        for name, label, value, stamp, writer, counter in rows
    ]


class Marks:
    """The marks of a journal's sessions. `History.mark` writes them."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def read(
        self, session: SessionRef, mark_type: str | None = None, key: str | None = None
    ) -> list[MarkRow]:
        """Return the marks that count, sorted by type and key. ``mark_type`` and ``key`` limit the
        result to marks with this type and with this key."""
        return await self._runner.read(read_marks, session.name, mark_type, key)
