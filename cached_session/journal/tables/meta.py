"""The table `meta`: named facts about the whole file."""

from __future__ import annotations

import sqlite3

__all__ = ["note_progress", "note_success", "read_meta", "write_meta"]


def note_success(conn: sqlite3.Connection, now_ms: int) -> None:
    """Record the time of a successful answer of the server."""
    write_meta(conn, last_success_ms=str(now_ms))


def note_progress(conn: sqlite3.Connection, now_ms: int) -> None:
    """Record the time at which the server acknowledged an operation."""
    write_meta(conn, last_ack_ms=str(now_ms))


def read_meta(conn: sqlite3.Connection) -> dict[str, str]:
    """Return the facts of the file, except import marks and audit marks, because each session may
    have some of these marks."""
    rows = conn.execute(
        "SELECT key, value FROM meta WHERE (key < 'import:' OR key >= 'import;') "
        "AND (key < 'audit:' OR key >= 'audit;')"
    )
    return dict(rows.fetchall())


def write_meta(conn: sqlite3.Connection, **facts: str) -> None:
    """Insert or replace facts of the file."""
    conn.executemany(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
        list(facts.items()),
    )
