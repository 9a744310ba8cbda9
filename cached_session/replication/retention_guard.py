"""Set the retention policy of a session's namespace, on first contact and once a day.

Without this policy, the server's own policy could delete a history that is still in use.
"""

from __future__ import annotations

import logging

from cached_session.history.session_name import identity_fields, quoted_name
from cached_session.history.session_ref import SessionRef
from cached_session.replication.context import Context

__all__ = ["GUARD_AGAIN_MS", "guard_retention", "is_due"]

GUARD_AGAIN_MS = 24 * 3600 * 1000
"""The time in milliseconds between two checks of the policy: a day. The server may have been set up
again in the meantime."""

log = logging.getLogger("cached_session.replication")


def is_due(guarded_ms: int, now_ms: int) -> bool:
    """Return whether the policy has to be checked again.

    The time of the last check is ignored if it is in the future, because the clock was changed.

    Args:
        guarded_ms: the time of the last check in Unix milliseconds; 0 if there was no check.
    """
    return not guarded_ms or not 0 <= now_ms - guarded_ms < GUARD_AGAIN_MS


async def guard_retention(context: Context, session: SessionRef, *, anew: bool = False) -> None:
    """Set the retention policy of a session's namespace, unless the last check was within a day.

    If the server does not allow the policy, log a warning and store the reason.

    Args:
        anew: send the request even if the policy was checked within a day.

    Raises:
        RemoteError: the request has failed.
    """
    marks, now = context.journal.retention, context.runtime.wall_ms()
    if not anew and not is_due(await marks.guarded_ms(session), now):
        return
    report = await context.remote.guard(session.agent)
    if report.unguarded:
        log.warning(
            "session %s is not guarded on the server: %s",
            quoted_name(session.name),
            report.unguarded,
            extra=identity_fields(session.name),
        )
    await marks.record(session, now, report.unguarded)
