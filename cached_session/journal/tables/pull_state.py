"""The progress of pulls for each session, in columns of the `sessions` table."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from cached_session.history.session_ref import SessionRef
from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.meta import note_success
from cached_session.journal.tables.sessions import stored_id

__all__ = ["PullState", "Pulls", "pull_state_of", "record_pull"]


@dataclass(frozen=True)
class PullState:
    """The state of a session after its earlier pulls."""

    is_known: bool = False
    """True if the journal knows the session."""
    is_hydrated: bool = False
    """True if at least one pull has reached the oldest memory."""
    newest_second: int = 0
    """The storage time of the newest memory that the last pull listed, in seconds of the server's
    clock."""
    since_ms: int = 0
    """The time of the first pull that found the present value of `newest_second`, in milliseconds
    of the wall clock."""


class Pulls:
    """The pull states of a journal's sessions."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def of(self, session: SessionRef) -> PullState:
        """Return the pull state of a session."""
        return await self._runner.read(pull_state_of, session)

    async def record(
        self,
        session: SessionRef,
        *,
        now_ms: int,
        newest_second: int,
        is_hydrated: bool,
        unreadable: int,
    ) -> None:
        """Store the results of a successful pull, even if it found no new memories."""
        await self._runner.write(
            record_pull,
            session,
            now_ms=now_ms,
            newest_second=newest_second,
            is_hydrated=is_hydrated,
            unreadable=unreadable,
        )


def pull_state_of(conn: sqlite3.Connection, session: SessionRef) -> PullState:
    """Return the pull state of a session."""
    row = conn.execute(
        "SELECT hydrated, ground, ground_ms FROM sessions WHERE session_id = ?",
        (stored_id(session.name),),
    ).fetchone()
    return PullState() if row is None else PullState(True, bool(row[0]), row[1], row[2])


def record_pull(
    conn: sqlite3.Connection,
    session: SessionRef,
    *,
    now_ms: int,
    newest_second: int,
    is_hydrated: bool,
    unreadable: int,
) -> None:
    """Store the results of a successful pull, even if it found no new memories."""
    name = stored_id(session.name)
    conn.execute(
        "INSERT OR IGNORE INTO sessions (session_id, created_ms) VALUES (?, ?)", (name, now_ms)
    )
    # `ground_ms` is the time since which `ground` has its value. Set it when `ground` changes, and
    # also if it is in the future because the clock was changed.
    conn.execute(
        "UPDATE sessions SET hydrated = max(hydrated, ?), ground = ?, "
        "ground_ms = CASE WHEN ground = ? AND ground_ms <= ? THEN ground_ms ELSE ? END, "
        "pulled_ms = ?, unreadable = ? WHERE session_id = ?",
        (
            is_hydrated,
            *(newest_second, newest_second, now_ms, now_ms),
            now_ms,
            unreadable,
            name,
        ),
    )
    note_success(conn, now_ms)
