"""The loop that pushes the sessions with unsent operations, several sessions at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import anyio

from cached_session import telemetry
from cached_session.errors import CachedSessionError, SessionClosed
from cached_session.history.session_name import identity_fields
from cached_session.history.session_ref import SessionRef
from cached_session.journal.sqlite.tracked_connection import FileVersion
from cached_session.remote.errors import RemoteError
from cached_session.replication.backoff import SHORTEST, exponential
from cached_session.replication.confirmed_pop import resolve_claims
from cached_session.replication.context import Context
from cached_session.replication.push import push
from cached_session.replication.results import PushResult
from cached_session.replication.schedule import PushSchedule

__all__ = ["Pusher"]


class Pusher:
    """The pushes of all sessions of a journal."""

    def __init__(
        self, context: Context, *, on_began: Callable[[str], None], on_ended: Callable[[str], None]
    ) -> None:
        """Prepare a pusher.

        Args:
            on_began: called with the session id before each push.
            on_ended: called with the session id after each push, also after a failed push.
        """
        self._context = context
        self._on_began = on_began
        self._on_ended = on_ended
        self._schedule = PushSchedule()
        self._pushing: set[str] = set()
        self._limiter = anyio.CapacityLimiter(context.options.parallel_sessions)
        self._wake = anyio.Event()

    def wake(self) -> None:
        """Make `run` look for unsent operations now, because an operation was written."""
        self._wake.set()

    async def run(self) -> None:
        """Push the operations of all processes on this journal, until cancelled."""
        options, clock = self._context.options, self._context.runtime.monotonic
        journal = self._context.journal
        self._schedule = PushSchedule()
        self._pushing.clear()
        async with anyio.create_task_group() as group:
            while True:
                # Read the version before the sessions, so that `_is_written` detects later writes.
                version = await journal.version()
                waiting = await journal.outbox.pending_sessions()
                # Do not wait for the pushes under way: a long push must not delay other sessions.
                due, nearest = self._schedule.due(waiting, clock(), besides=self._pushing)
                for session_id in due:
                    self._pushing.add(session_id)
                    group.start_soon(self._push_due, session_id)
                wait = min(max(0.0, nearest - clock()), options.backoff_max)
                if await self._is_written(wait, version):
                    # More operations often follow immediately. Send all of them together.
                    await anyio.sleep(options.push_delay)
                    self._schedule.written()

    async def _push_due(self, session_id: str) -> None:
        """Push a session that is due, and plan its next push."""
        try:
            async with self._limiter:
                wait = await self._push_unless_paused(session_id)
            session = SessionRef.of(session_id)
            if wait == math.inf and await self._context.journal.outbox.has_unsent(session):
                # An operation was written while the push was ending.
                wait = 0.0
            self._schedule.put_off(session_id, self._context.runtime.monotonic() + wait)
            if wait < math.inf:
                self._wake.set()
        finally:
            self._pushing.discard(session_id)

    async def _is_written(self, delay: float, version: FileVersion) -> bool:
        """Wait until a process writes to the journal or the delay is over.

        Return whether a process has written. ``version`` is the version of the file before the
        wait, ``delay`` is in seconds.
        """
        until = self._context.runtime.monotonic() + delay
        while True:
            left = until - self._context.runtime.monotonic()
            if left <= 0:
                return False
            with anyio.move_on_after(min(left, self._context.options.watch_interval)):
                await self._wake.wait()
            if self._wake.is_set():
                self._wake = anyio.Event()
                return True
            if await self._context.journal.version() != version:
                return True

    async def _push_unless_paused(self, session_id: str) -> float:
        """Push a session unless it is paused; return the seconds until the next push.

        Infinity means that the session needs no push until an operation is written.
        """
        wait = await self._context.pauses.wait_ms(session_id)
        if wait:
            return wait / 1000
        try:
            result = await self.push_now(session_id)
        except RemoteError:
            return max(SHORTEST, await self._context.pauses.wait_ms(session_id) / 1000)
        except SessionClosed:
            raise
        except CachedSessionError as error:
            failures = self._context.local_errors.record("push", session_id, error)
            # Back off, because each attempt sends the same operations again while the journal
            # cannot store their acknowledgement.
            return exponential(failures, self._context.options, self._context.runtime.random)
        return self._context.options.claim_patience if result.claims_in_doubt else math.inf

    async def push_now(self, session_id: str, *, upto: int | None = None) -> PushResult:
        """Resolve the claims of one session and push it, whether or not it is paused.

        Args:
            upto: the last `seq` to send; None to send until the outbox of the session is empty.

        Raises:
            RemoteError: the push has failed. The pause of the session is already stored.
        """
        session = SessionRef.of(session_id)

        async def work() -> PushResult:
            in_doubt = await resolve_claims(self._context, session)
            result = await push(self._context, session, upto=upto)
            result.claims_in_doubt = in_doubt
            return result

        self._on_began(session_id)
        try:
            with telemetry.step(
                "push", identity_fields(session_id), self._context.runtime.monotonic
            ):
                result = await self._context.attempt(session_id, work)
        finally:
            # Report a failed push as well: some of its operations may be acknowledged.
            self._on_ended(session_id)
        self._context.local_errors.clear("push", session_id)
        return result
