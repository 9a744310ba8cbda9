"""The pauses: when the next attempt at the server or at one session may be made.

They are rows, so that a restart does not shorten them. Each ends by its own time, so that a crash
cannot leave one set forever. Written by the replicator alone.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.meta import write_meta
from cached_session.journal.tables.sessions import session_number, stored_id

__all__ = [
    "SERVER",
    "ActivePauses",
    "Pause",
    "PauseTable",
    "active_pauses",
    "count_waiting",
    "end_pauses",
    "pause_of",
    "record_failure",
]

SERVER = 0
"""The session number of the pause that holds for the whole server."""

IS_WAITING = "until_ms > ? AND until_ms - ? <= pause_ms"
"""The rows that `Pause.wait_ms` gives more than 0 for; both parameters are the time."""


@dataclass(frozen=True)
class Pause:
    """A pause before the next attempt, and its reason."""

    failures: int
    """Failures in a row."""
    pause_ms: int
    until_ms: int
    kind: str
    reason: str
    since_ms: int
    """The time of the first of these failures."""

    def __post_init__(self) -> None:
        # The numbers are computed with outside the journal, where an error does not start the
        # search for a damaged file.
        numbers = self.failures, self.pause_ms, self.until_ms, self.since_ms
        if not all(type(number) is int for number in numbers):
            raise ValueError(f"a pause must consist of integers: {numbers}")

    def wait_ms(self, now_ms: int) -> int:
        """Return the milliseconds that are left.

        A pause that would end later than its own length from now was set by a clock that has been
        moved since. It is void.
        """
        left = self.until_ms - now_ms
        return left if 0 < left <= self.pause_ms else 0


@dataclass(frozen=True)
class ActivePauses:
    """The pauses that hold up one session: its own and that of the server."""

    server: Pause | None
    session: Pause | None

    def each(self) -> list[Pause]:
        """Return those of the two that exist."""
        return [pause for pause in (self.server, self.session) if pause is not None]


def _number(conn: sqlite3.Connection, session_id: str | None) -> int | None:
    if session_id is None:
        return SERVER
    return session_number(conn, session_id)


def pause_of(conn: sqlite3.Connection, session_id: str | None) -> Pause | None:
    """Return the pause of a session, or of the server (None)."""
    row = conn.execute(
        "SELECT failures, pause_ms, until_ms, kind, reason, since_ms FROM gates WHERE session = ?",
        (_number(conn, session_id),),
    ).fetchone()
    return None if row is None else Pause(*row)


def active_pauses(conn: sqlite3.Connection, session_id: str) -> ActivePauses:
    """Return the pauses that hold up a session."""
    return ActivePauses(server=pause_of(conn, None), session=pause_of(conn, session_id))


def record_failure(
    conn: sqlite3.Connection,
    session_id: str | None,
    *,
    pause_ms: int,
    now_ms: int,
    kind: str,
    reason: str,
) -> None:
    """Pause a session, or the server (None), for `pause_ms` from now on."""
    if session_id is not None:
        # The journal may hold nothing of the session yet. Its pause must be kept nevertheless.
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
    """End the pauses of the server and of a session. One of `except_kind` stays until its time is
    over."""
    for number in (SERVER, _number(conn, session_id)):
        conn.execute(
            f"DELETE FROM gates WHERE session = ? AND NOT (kind = ? AND {IS_WAITING})",
            (number, except_kind, now_ms, now_ms),
        )


def count_waiting(conn: sqlite3.Connection, kind: str, now_ms: int, besides: str) -> int:
    """Count the other sessions that a pause of this kind holds up now."""
    (found,) = conn.execute(
        "SELECT count(*) FROM gates WHERE session <> ? AND session <> coalesce(?, -1) "
        f"AND kind = ? AND {IS_WAITING}",
        (SERVER, _number(conn, besides), kind, now_ms, now_ms),
    ).fetchone()
    return int(found)


class PauseTable:
    """The pauses of one journal."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def of(self, session_id: str | None) -> Pause | None:
        """Return the pause of a session, or of the server (None)."""
        return await self._runner.read(pause_of, session_id)

    async def active(self, session_id: str) -> ActivePauses:
        """Return the pauses that hold up a session."""
        return await self._runner.read(active_pauses, session_id)

    async def count_waiting(self, kind: str, now_ms: int, *, besides: str) -> int:
        """Count the sessions other than `besides` that a pause of this kind holds up now."""
        return await self._runner.read(count_waiting, kind, now_ms, besides)

    async def record_failure(
        self, session_id: str | None, *, pause_ms: int, now_ms: int, kind: str, reason: str
    ) -> None:
        """Pause a session, or the server (None), for `pause_ms` from now on."""
        await self._runner.write(
            record_failure,
            session_id,
            pause_ms=pause_ms,
            now_ms=now_ms,
            kind=kind,
            reason=reason,
        )

    async def end(self, session_id: str, *, now_ms: int, except_kind: str) -> None:
        """End the pauses of the server and of a session. One of `except_kind` stays until its
        time is over."""
        await self._runner.write(end_pauses, session_id, now_ms=now_ms, except_kind=except_kind)
