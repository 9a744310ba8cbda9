"""Pauses: the times before which the replicator sends no requests to the server or for one session.

Pauses are stored in the table `gates`, so that a restart does not shorten them. Each pause has an
end time, so that a crash cannot leave a pause forever. Only the replicator writes pauses.
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
"""The session number in the row of the server's pause."""

IS_WAITING = "until_ms > ? AND until_ms - ? <= pause_ms"
"""The condition that selects pauses whose `Pause.wait_ms` is above 0. Both parameters are the
current time in Unix milliseconds."""


@dataclass(frozen=True)
class Pause:
    """A pause before the next attempt, and its reason."""

    failures: int
    """The number of consecutive failures."""
    pause_ms: int
    """The length of the pause in milliseconds."""
    until_ms: int
    """The end of the pause, in Unix milliseconds."""
    kind: str
    """The kind of the last failure."""
    reason: str
    since_ms: int
    """The time of the first of these failures, in Unix milliseconds."""

    def __post_init__(self) -> None:
        # Check the types here: code outside the journal calculates with these numbers, and an error
        # there would not start the search for a damaged file.
        numbers = self.failures, self.pause_ms, self.until_ms, self.since_ms
        if not all(type(number) is int for number in numbers):
            raise ValueError(f"a pause must consist of integers: {numbers}")

    def wait_ms(self, now_ms: int) -> int:
        """Return the remaining milliseconds of the pause; 0 if the pause is over.

        If the remaining time is longer than the whole pause, the clock was changed after the pause
        was set. Such a pause counts as over.
        """
        left = self.until_ms - now_ms
        return left if 0 < left <= self.pause_ms else 0


@dataclass(frozen=True)
class ActivePauses:
    """The pauses that delay one session: its own pause and the pause of the server."""

    server: Pause | None
    session: Pause | None

    def each(self) -> list[Pause]:
        """Return the pauses that are not None, the server's pause first."""
        return [pause for pause in (self.server, self.session) if pause is not None]


def _number(conn: sqlite3.Connection, session_id: str | None) -> int | None:
    if session_id is None:
        return SERVER
    return session_number(conn, session_id)


def pause_of(conn: sqlite3.Connection, session_id: str | None) -> Pause | None:
    """Return the pause of a session, or of the server if ``session_id`` is None."""
    row = conn.execute(
        "SELECT failures, pause_ms, until_ms, kind, reason, since_ms FROM gates WHERE session = ?",
        (_number(conn, session_id),),
    ).fetchone()
    return None if row is None else Pause(*row)


def active_pauses(conn: sqlite3.Connection, session_id: str) -> ActivePauses:
    """Return the pauses that delay a session."""
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
    """Pause a session, or the server if ``session_id`` is None, for ``pause_ms`` from now on."""
    if session_id is not None:
        # The pause must be stored even if the journal has no row of the session yet.
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
    """End the pauses of the server and of a session. A pause of the kind ``except_kind`` stays
    until its end time."""
    for number in (SERVER, _number(conn, session_id)):
        conn.execute(
            f"DELETE FROM gates WHERE session = ? AND NOT (kind = ? AND {IS_WAITING})",
            (number, except_kind, now_ms, now_ms),
        )


def count_waiting(conn: sqlite3.Connection, kind: str, now_ms: int, besides: str) -> int:
    """Count the sessions other than ``besides`` that a pause of this kind delays now."""
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
        """Return the pause of a session, or of the server if ``session_id`` is None."""
        return await self._runner.read(pause_of, session_id)

    async def active(self, session_id: str) -> ActivePauses:
        """Return the pauses that delay a session."""
        return await self._runner.read(active_pauses, session_id)

    async def count_waiting(self, kind: str, now_ms: int, *, besides: str) -> int:
        """Count the sessions other than ``besides`` that a pause of this kind delays now."""
        return await self._runner.read(count_waiting, kind, now_ms, besides)

    async def record_failure(
        self, session_id: str | None, *, pause_ms: int, now_ms: int, kind: str, reason: str
    ) -> None:
        """Pause a session, or the server if ``session_id`` is None, for ``pause_ms`` from now
        on."""
        await self._runner.write(
            record_failure,
            session_id,
            pause_ms=pause_ms,
            now_ms=now_ms,
            kind=kind,
            reason=reason,
        )

    async def end(self, session_id: str, *, now_ms: int, except_kind: str) -> None:
        """End the pauses of the server and of a session. A pause of the kind ``except_kind`` stays
        until its end time."""
        await self._runner.write(end_pauses, session_id, now_ms=now_ms, except_kind=except_kind)
