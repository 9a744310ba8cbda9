"""Pauses after failures: which session is paused, for how long, and when a success ends the pause.

The decisions are pure functions. `Pauses` reads and writes the journal for them.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from cached_session.history.session_name import identity_fields, quoted_name
from cached_session.journal.journal import Journal
from cached_session.journal.tables.pauses import ActivePauses
from cached_session.options import SyncOptions
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.replication.backoff import pause_after

__all__ = [
    "BUSY",
    "RATE_LIMITED",
    "UNAUTHORIZED",
    "NextPause",
    "Pauses",
    "ends_with_success",
    "next_pause",
    "paused_session",
    "wait_ms",
]

RATE_LIMITED = 429
BUSY = Verdict.BUSY.value
"""The kind of a pause that the server has requested."""
UNAUTHORIZED = "unauthorized"
"""The kind of a pause after the server has refused the key or its scope."""

log = logging.getLogger("cached_session.replication")


@dataclass(frozen=True)
class NextPause:
    """The pause that follows a failure."""

    seconds: float
    kind: str
    reason: str


def wait_ms(active: ActivePauses, now_ms: int, *, asked_only: bool = False) -> int:
    """Return the milliseconds until the next attempt for a session.

    Args:
        asked_only: count only the pauses that the server itself has requested.
    """
    counted = [pause for pause in active.each() if not asked_only or pause.kind == BUSY]
    return max((pause.wait_ms(now_ms) for pause in counted), default=0)


def paused_session(error: RemoteError, session_id: str, *, others_asked: bool) -> str | None:
    """Return the session that a failure pauses; None if the failure pauses the whole server.

    Args:
        others_asked: whether another session has a pause that the server has requested and that is
            not over. If so, a rate limit counts as a limit of the whole server. Otherwise each
            session would have to find the limit by an attempt, and the attempts would use up the
            limit.
    """
    if error.scope is Scope.SERVER or (error.status == RATE_LIMITED and others_asked):
        return None
    return session_id


def next_pause(
    error: RemoteError, failures: int, options: SyncOptions, chance: random.Random
) -> NextPause:
    """Return the pause after a failure that follows ``failures`` other failures in a row."""
    kind = UNAUTHORIZED if error.status in (401, 403) else error.verdict.value
    return NextPause(pause_after(error, failures, options, chance), kind, error.reason)


def ends_with_success(active: ActivePauses, now_ms: int) -> bool:
    """Return whether a success ends any of these pauses.

    A success does not end a pause that the server has requested and that is not over. The server
    may have requested it while the attempt was under way.
    """
    return any(not (pause.kind == BUSY and pause.wait_ms(now_ms)) for pause in active.each())


class Pauses:
    """The pauses of the sessions of one journal, and of its server."""

    def __init__(
        self,
        journal: Journal,
        options: SyncOptions,
        chance: random.Random,
        now_ms: Callable[[], int],
    ) -> None:
        self._journal = journal
        self._options = options
        self._chance = chance
        self._now_ms = now_ms

    async def wait_ms(self, session_id: str, *, asked_only: bool = False) -> int:
        """Return the milliseconds until the next attempt for a session.

        Args:
            asked_only: count only the pauses that the server itself has requested.
        """
        active = await self._journal.pauses.active(session_id)
        return wait_ms(active, self._now_ms(), asked_only=asked_only)

    async def is_server_paused(self) -> bool:
        """Return whether a pause of the whole server is stored.

        The pause may be over, because it is stored until a request succeeds.
        """
        return await self._journal.pauses.of(None) is not None

    async def record_failure(self, session_id: str, error: RemoteError) -> float:
        """Pause the session, or the whole server, after a failure; return the pause in seconds."""
        now = self._now_ms()
        others_asked = False
        if error.scope is not Scope.SERVER and error.status == RATE_LIMITED:
            others = await self._journal.pauses.count_waiting(BUSY, now, besides=session_id)
            others_asked = others > 0
        paused = paused_session(error, session_id, others_asked=others_asked)
        before = await self._journal.pauses.of(paused)
        failures = before.failures if before else 0
        pause = next_pause(error, failures, self._options, self._chance)
        await self._journal.pauses.record_failure(
            paused,
            pause_ms=int(pause.seconds * 1000),
            now_ms=now,
            kind=pause.kind,
            reason=pause.reason,
        )
        log.log(
            logging.WARNING if before is None else logging.DEBUG,
            "sync of %s paused for %.1f s: %s",
            quoted_name(session_id),
            pause.seconds,
            pause.reason,
            extra={**identity_fields(session_id), "verdict": pause.kind, "pause": pause.seconds},
        )
        return pause.seconds

    async def record_success(self, session_id: str) -> None:
        """End the pauses of the session and of the server after a success.

        A pause that the server has requested stays until it is over.
        """
        now = self._now_ms()
        if ends_with_success(await self._journal.pauses.active(session_id), now):
            await self._journal.pauses.end(session_id, now_ms=now, except_kind=BUSY)
            log.info(
                "sync of %s continues", quoted_name(session_id), extra=identity_fields(session_id)
            )
