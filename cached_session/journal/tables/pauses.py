"""When the next attempt may be made, as rows: a crash can leave none of them set for ever."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from cached_session.journal.tables.meta import write_meta
from cached_session.journal.tables.sessions import stored_id

__all__ = ["SERVER", "Pause", "end_pauses", "pause_of", "shut", "waiting"]

SERVER = 0
"""The session number of the gate before the server as a whole."""


@dataclass(frozen=True)
class Pause:
    """A pause before the next attempt, and why."""

    failures: int
    pause_ms: int
    until_ms: int
    kind: str
    reason: str
    since_ms: int

    def __post_init__(self) -> None:
        # Whoever has one computes with it, where nobody asks any more whether the file is damaged.
        numbers = self.failures, self.pause_ms, self.until_ms, self.since_ms
        if not all(type(number) is int for number in numbers):
            raise ValueError(f"a gate makes no sense: {numbers}")

    def wait_ms(self, now_ms: int) -> int:
        """How much longer to wait. A gate further away than its own pause was set by a clock that
        has been moved since, and is void."""
        left = self.until_ms - now_ms
        return left if 0 < left <= self.pause_ms else 0


def _number(conn: sqlite3.Connection, session_id: str | None) -> int | None:
    if session_id is None:
        return SERVER
    row = conn.execute(
        "SELECT id FROM sessions WHERE session_id = ?", (stored_id(session_id),)
    ).fetchone()
    return None if row is None else int(row[0])


def pause_of(conn: sqlite3.Connection, session_id: str | None) -> Pause | None:
    """The gate before a session, or before the server (None)."""
    row = conn.execute(
        "SELECT failures, pause_ms, until_ms, kind, reason, since_ms FROM gates WHERE session = ?",
        (_number(conn, session_id),),
    ).fetchone()
    return None if row is None else Pause(*row)


def shut(
    conn: sqlite3.Connection,
    session_id: str | None,
    *,
    pause_ms: int,
    now_ms: int,
    kind: str,
    reason: str,
) -> None:
    """Note a failure: no attempt for `pause_ms`."""
    if session_id is not None:
        # Perhaps the journal has only heard of it so far: its pause must be kept all the same.
        conn.execute(
            "INSERT OR IGNORE INTO sessions (session_id, created_ms) VALUES (?, ?)",
            (stored_id(session_id), now_ms),
        )
    conn.execute(
        "INSERT INTO gates VALUES (?, 1, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
        "failures = failures + 1, pause_ms = excluded.pause_ms, until_ms = excluded.until_ms, "
        "kind = excluded.kind, reason = excluded.reason",
        (_number(conn, session_id), pause_ms, now_ms + pause_ms, kind, reason, now_ms),
    )
    write_meta(conn, last_error=reason, last_error_ms=str(now_ms))


def end_pauses(
    conn: sqlite3.Connection, session_id: str, *, now_ms: int = 0, except_kind: str = ""
) -> None:
    """Note a success: the server and this session are open. A gate of `except_kind` opens only
    once its time is over."""
    for number in (SERVER, _number(conn, session_id)):
        conn.execute(
            "DELETE FROM gates WHERE session = ? AND NOT "
            "(kind = ? AND until_ms > ? AND until_ms - ? <= pause_ms)",
            (number, except_kind, now_ms, now_ms),
        )


def waiting(conn: sqlite3.Connection, kind: str, now_ms: int, besides: str) -> int:
    """How many other sessions are in a pause of this kind at the moment."""
    (found,) = conn.execute(
        "SELECT count(*) FROM gates WHERE session <> ? AND session <> coalesce(?, -1) "
        "AND kind = ? AND until_ms > ? AND until_ms - ? <= pause_ms",
        (SERVER, _number(conn, besides), kind, now_ms, now_ms),
    ).fetchone()
    return int(found)
