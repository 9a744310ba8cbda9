"""The `sessions` table: ids, row numbers and revisions of sessions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.unfolded import UNFOLDED_APPENDS, UNFOLDED_ITEMS

__all__ = [
    "Sessions",
    "all_sessions",
    "numbered_sessions",
    "revision_of",
    "session_ids",
    "session_number",
    "session_row",
    "stored_id",
]


class Sessions:
    """The sessions of a journal."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def all(self) -> list[str]:
        """Return the id of every session, in the order in which they were created."""
        return await self._runner.read(all_sessions)


def stored_id(session_id: str) -> str | bytes:
    """Return a session id as SQLite can store it: text, or bytes if it has lone surrogates."""
    try:
        session_id.encode()
    except UnicodeEncodeError:
        return session_id.encode("utf-8", "surrogatepass")
    return session_id


def session_row(conn: sqlite3.Connection, session_id: str) -> tuple[int, int, int, int, int] | None:
    """Return (number, items, met, hydrated, revision) of a session; None if the session is
    unknown."""
    row: tuple[int, int, int, int, int] | None = conn.execute(
        f"SELECT id, items + {UNFOLDED_ITEMS}, met, hydrated, revision + {UNFOLDED_APPENDS} "
        "FROM sessions WHERE session_id = ?",
        (stored_id(session_id),),
    ).fetchone()
    return row


def session_number(conn: sqlite3.Connection, session_id: str) -> int | None:
    """Return the row number of a session; None if the session is unknown."""
    row = conn.execute(
        "SELECT id FROM sessions WHERE session_id = ?", (stored_id(session_id),)
    ).fetchone()
    return None if row is None else int(row[0])


def revision_of(conn: sqlite3.Connection, session_id: str) -> int | None:
    """Return the revision of a session, in one statement; None if the session is unknown."""
    row = conn.execute(
        f"SELECT revision + {UNFOLDED_APPENDS} FROM sessions WHERE session_id = ?",
        (stored_id(session_id),),
    ).fetchone()
    return None if row is None else row[0]


def session_ids(rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """Yield the session ids in the first column of these rows as strings."""
    for name, *_ in rows:
        yield name.decode("utf-8", "surrogatepass") if isinstance(name, bytes) else name


def all_sessions(conn: sqlite3.Connection) -> list[str]:
    """Return the ids of all sessions, in the order in which they were created."""
    return list(session_ids(conn.execute("SELECT session_id FROM sessions ORDER BY id")))


def numbered_sessions(conn: sqlite3.Connection) -> dict[int, str]:
    """Return the ids of all sessions by their numbers."""
    rows = conn.execute("SELECT session_id, id FROM sessions ORDER BY id").fetchall()
    return {row[1]: name for row, name in zip(rows, session_ids(rows), strict=True)}
