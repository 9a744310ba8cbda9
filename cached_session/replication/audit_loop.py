"""The task that audits the sessions in turn, each about once per audit interval."""

from __future__ import annotations

import math
from collections.abc import Callable

import anyio

from cached_session.errors import JournalError
from cached_session.history.session_name import quoted_name
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables.audit_state import DueAudit
from cached_session.options import SyncOptions
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.replication.audit import AuditReport, audit
from cached_session.replication.context import Context, log
from cached_session.replication.leader import Leader

__all__ = ["AuditPace", "Auditor"]

GRACE_SHARE = 1 / 24
"""The shortest time between two audits of a session that is suspected or whose last audit failed,
as a share of the audit interval: an hour if the interval is a day."""
AUDITS_PER_INTERVAL = 96
"""The maximum number of audits of a cache in one interval: four an hour if the interval is a day.
The limit keeps the requests of an idle cache from growing with the number of sessions. It does not
delay the audits of suspected sessions."""
LONGEST_WAIT = 60.0
"""The longest time in seconds between two reads of the due audit from the journal. Another process
may have made an audit due."""


class AuditPace:
    """The earliest times of the next audits, in seconds of the monotonic clock. The class does
    no I/O."""

    def __init__(self, options: SyncOptions) -> None:
        self._options = options
        self._delayed: dict[str, float] = {}
        """The time from which each session whose audit has failed may be audited again."""
        self._rests_until = -math.inf

    @property
    def grace(self) -> float:
        """The shortest time in seconds between two audits of a suspected or failed session."""
        return self._options.audit_interval * GRACE_SHARE

    def excluded(self, now: float) -> frozenset[str]:
        """Return the sessions that must wait for an audit because their last audit has failed."""
        self._delayed = {name: until for name, until in self._delayed.items() if until > now}
        return frozenset(self._delayed)

    def suspects_only(self, now: float) -> bool:
        """Return whether only suspected sessions may be audited now."""
        return now < self._rests_until

    def succeeded(self, now: float) -> None:
        """Delay the next audit of a session that is not suspected, after an audit succeeded."""
        self._rests_until = now + self._options.audit_interval / AUDITS_PER_INTERVAL

    def failed(self, session_id: str, now: float) -> None:
        """Exclude a session for a time after its audit failed.

        Without the exclusion, the session would delay the audits of other sessions.
        """
        self._delayed[session_id] = now + max(self.grace, self._options.backoff_max)

    def wait(self, due: DueAudit) -> float:
        """Return the seconds until the next read of the due audit from the journal."""
        return min(max(due.wait_ms / 1000, self._options.watch_interval), LONGEST_WAIT)


class Auditor:
    """The audits of all sessions of a journal. The journal stores when each audit is due."""

    def __init__(self, context: Context, leader: Leader, on_audited: Callable[[str], None]) -> None:
        self._context = context
        self._leader = leader
        self._on_audited = on_audited
        self._pace = AuditPace(context.options)
        self._wake = anyio.Event()

    async def run(self) -> None:
        """Audit the sessions that are due while this process is the leader, until cancelled."""
        while True:
            wait = self._context.options.watch_interval
            if self._leader.is_leader:
                due = await self._next_due()
                wait = self._pace.wait(due)
                if due.session_id is not None:
                    await self._audit_due(due.session_id)
            with anyio.move_on_after(wait):
                await self._wake.wait()
            if self._wake.is_set():
                self._wake = anyio.Event()

    async def _next_due(self) -> DueAudit:
        context = self._context
        now = context.runtime.monotonic()
        return await context.journal.audits.next_due(
            now_ms=context.runtime.wall_ms(),
            interval_ms=int(1000 * context.options.audit_interval),
            writer=context.writer,
            excluded=self._pace.excluded(now),
            suspects_only=self._pace.suspects_only(now),
        )

    async def _audit_due(self, session_id: str) -> None:
        """Audit a session, unless it is paused. A failure is logged and delays its next audit."""
        context = self._context
        try:
            if await context.pauses.wait_ms(session_id):
                raise RemoteError(Verdict.BUSY, "its sync is paused")
            await self.audit_now(session_id)
        except (RemoteError, JournalError) as error:
            self._pace.failed(session_id, context.runtime.monotonic())
            log.info("postponed the audit of %s: %s", quoted_name(session_id), error)
            if isinstance(error, JournalError):
                context.local_errors.record("audit", session_id, error)
        else:
            self._pace.succeeded(context.runtime.monotonic())

    async def suspect(self, session_id: str) -> None:
        """Make an audit of a session due, because the server seems to have lost some memories.

        Does nothing if audits are off, or if the last audit was less than `AuditPace.grace` ago.
        """
        context = self._context
        if not context.options.audit_interval:
            return
        now, grace_ms = context.runtime.wall_ms(), int(1000 * self._pace.grace)
        await context.journal.audits.suspect(SessionRef.of(session_id), now, grace_ms)
        self._wake.set()

    async def audit_now(self, session_id: str) -> AuditReport:
        """Audit one session, whether or not it is paused.

        Raises:
            RemoteError: the audit has failed. The pause of the session is already stored.
        """
        context, session = self._context, SessionRef.of(session_id)
        report = await context.attempt(session_id, lambda: audit(context, session))
        context.local_errors.clear("audit", session_id)
        if report.healed or report.forgotten:
            log.warning(
                "the server had lost %d operations of session %s and had kept %d removed items: "
                "sent the former again and deleted the latter",
                report.healed,
                quoted_name(session_id),
                report.forgotten,
            )
        self._on_audited(session_id)
        return report
