"""Ask the server to keep a session's namespace, on first contact and once a day.

The server's retention policy could otherwise delete a history that is still in use.
"""

from __future__ import annotations

import logging

from cached_session.history.session_ref import SessionRef
from cached_session.replication.context import Context

__all__ = ["GUARD_AGAIN_MS", "guard_retention", "is_due"]

GUARD_AGAIN_MS = 24 * 3600 * 1000
"""The policy is checked again after a day: the server may have been set up anew."""

log = logging.getLogger("cached_session.replication")


def is_due(guarded_ms: int, now_ms: int) -> bool:
    """Return whether the policy has to be checked again after a check at ``guarded_ms`` (0: never).

    A check that lies in the future was dated by a clock that has been moved since.
    """
    return not guarded_ms or not 0 <= now_ms - guarded_ms < GUARD_AGAIN_MS


async def guard_retention(context: Context, session: SessionRef, *, anew: bool = False) -> None:
    """Ask the server to keep the namespace of a session, unless that was done within a day.

    Args:
        anew: ask in any case.

    Raises:
        RemoteError: the server could not be asked.
    """
    marks, now = context.journal.retention, context.runtime.wall_ms()
    if not anew and not is_due(await marks.guarded_ms(session), now):
        return
    report = await context.remote.guard(session.agent)
    if report.unguarded:
        log.warning(
            "session %r is not guarded on the server: %s",
            session.session_id,
            report.unguarded,
            extra={"session": session.session_id},
        )
    await marks.record(session, now, report.unguarded)
