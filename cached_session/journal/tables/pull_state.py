"""How far the listings of each session have been read."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from cached_session.journal.tables.sessions import stored_id

__all__ = ["Ground", "ground_of", "note_pull"]


@dataclass(frozen=True)
class Ground:
    """Down to where a session has been pulled."""

    is_known: bool = False
    """Whether the journal knows the session."""
    is_hydrated: bool = False
    """Whether a pull has reached the oldest memory once."""
    second: int = 0
    """The newest second, by the server's clock, that the last pull saw."""
    since_ms: int = 0
    """Since when that has been the newest, by the wall clock."""


def ground_of(conn: sqlite3.Connection, session_id: str) -> Ground:
    """The known ground of a session."""
    row = conn.execute(
        "SELECT hydrated, ground, ground_ms FROM sessions WHERE session_id = ?",
        (stored_id(session_id),),
    ).fetchone()
    return Ground() if row is None else Ground(True, bool(row[0]), row[1], row[2])


def note_pull(
    conn: sqlite3.Connection,
    session_id: str,
    *,
    now_ms: int,
    ground: int,
    is_same_ground: bool,
    hydrated: bool,
    unreadable: int,
) -> None:
    """A pull has ended well, whether or not the server had anything."""
    name = stored_id(session_id)
    conn.execute(
        "INSERT OR IGNORE INTO sessions (session_id, created_ms) VALUES (?, ?)", (name, now_ms)
    )
    conn.execute(
        "UPDATE sessions SET hydrated = max(hydrated, ?), ground = ?, "
        "ground_ms = CASE WHEN ? AND ground_ms <= ? THEN ground_ms ELSE ? END, "
        "pulled_ms = ?, unreadable = ? WHERE session_id = ?",
        (hydrated, ground, is_same_ground, now_ms, now_ms, now_ms, unreadable, name),
    )
