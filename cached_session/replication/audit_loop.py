"""Audits each session about once an interval, one after the other, and when somebody asks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import anyio

from cached_session.errors import JournalError
from cached_session.journal.tables import audit_state
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.replication.audit import AuditReport, audit
from cached_session.replication.context import Context, log
from cached_session.replication.leader import Leader

__all__ = ["Auditor"]

SUSPICION = 1 / 24
"""Of the audit interval (an hour of a day): audits of one session that were not due, or failed, are
not closer than this."""
MOST_AUDITS = 96
"""Of a cache in an audit interval (four an hour of a day): what is asked for when nothing happens
does not grow with the sessions. Those that are suspected do not wait for it."""
LONGEST_LOOK = 60.0
"""Seconds between looks at what audit is due: another process may have made one."""


class Auditor:
    """The audits of all sessions of a journal; which is due, the journal knows."""

    def __init__(self, context: Context, leader: Leader, on_audited: Callable[[str], None]) -> None:
        self._context = context
        self._leader = leader
        self._on_audited = on_audited
        self._wake = anyio.Event()

    async def run(self) -> None:
        """Compare each session with the server, while this process leads, until cancelled."""
        options, clock = self._context.options, self._context.runtime.monotonic
        interval = options.audit_interval
        put_off: dict[str, float] = {}
        rests_until = -math.inf
        while True:
            wait = options.watch_interval
            if self._leader.is_leader:
                put_off = {name: until for name, until in put_off.items() if until > clock()}
                now = self._context.runtime.wall_ms()
                session_id, left_ms = await self._context.journal.write(
                    partial(
                        audit_state.next_due,
                        now_ms=now,
                        interval_ms=int(1000 * interval),
                        who=self._context.writer,
                        besides=frozenset(put_off),
                        only_suspects=clock() < rests_until,
                    )
                )
                wait = min(max(left_ms / 1000, options.watch_interval), LONGEST_LOOK)
                if session_id is not None:
                    try:
                        if await self._context.pauses.wait_ms(session_id):
                            raise RemoteError(Verdict.BUSY, "its gate is shut")
                        await self.audit_now(session_id)
                        rests_until = clock() + interval / MOST_AUDITS
                    except (RemoteError, JournalError) as error:
                        # The next one in the line must not wait for it.
                        put_off[session_id] = clock() + max(
                            interval * SUSPICION, options.backoff_max
                        )
                        log.info("the audit of %r is put off: %s", session_id, error)
                        if isinstance(error, JournalError):
                            self._context.local_errors.record("audit", session_id, error)
            with anyio.move_on_after(wait):
                await self._wake.wait()
            if self._wake.is_set():
                self._wake = anyio.Event()

    async def suspect(self, session_id: str) -> None:
        """The server seems to have lost something of this session: its audit is due soon."""
        interval = self._context.options.audit_interval
        if not interval:
            return
        now, grace = self._context.runtime.wall_ms(), int(1000 * interval * SUSPICION)
        await self._context.journal.write(
            lambda conn: audit_state.suspect(conn, session_id, now, grace)
        )
        self._wake.set()

    async def audit_now(self, session_id: str) -> AuditReport:
        """Audit one session whatever its gates say.

        Raises:
            RemoteError: after the gate was shut.
        """
        report = await self._context.attempt(session_id, lambda: audit(self._context, session_id))
        self._context.local_errors.clear("audit", session_id)
        if report.healed or report.forgotten:
            log.warning(
                "the server had lost %d operations of session %r and kept %d removed items; "
                "both are put right",
                report.healed,
                session_id,
                report.forgotten,
            )
        self._on_audited(session_id)
        return report
