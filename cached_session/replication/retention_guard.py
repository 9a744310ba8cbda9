"""Ask the server to keep a session's namespace, on first contact and once a day."""

from __future__ import annotations

from cached_session.history.ids import agent_id
from cached_session.journal.tables import sessions
from cached_session.journal.tables.sessions import note_guard
from cached_session.replication.context import Context, log

__all__ = ["GUARD_AGAIN_MS", "guard"]

GUARD_AGAIN_MS = 24 * 3600 * 1000
"""The namespace's policy is checked again after a day: a server may have been set up anew."""


async def guard(context: Context, session_id: str, *, anew: bool = False) -> None:
    """The lifecycle guard, on first contact and once a day; ``anew``: also now.

    Raises:
        RemoteError: the server could not be asked.
    """
    now = context.runtime.wall_ms()
    guarded_ms = await context.journal.read(lambda conn: sessions.guarded_ms(conn, session_id))
    if 0 <= now - guarded_ms < GUARD_AGAIN_MS and guarded_ms and not anew:
        return
    report = await context.remote.guard(agent_id(session_id))
    if report.unguarded:
        log.warning(
            "session %r is not guarded on the server: %s",
            session_id,
            report.unguarded,
            extra={"session": session_id},
        )
    await context.journal.write(lambda conn: note_guard(conn, session_id, now, report.unguarded))
