"""Pushes the sessions with something unsent, side by side, as it is written."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable

import anyio

from cached_session import telemetry
from cached_session.errors import CachedSessionError, SessionClosed
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables.outbox import has_unsent, pending_sessions
from cached_session.remote.errors import RemoteError
from cached_session.replication.backoff import growing
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
        """``on_began`` and ``on_ended`` are told of each push of a session, well or badly ended."""
        self._context = context
        self._on_began = on_began
        self._on_ended = on_ended
        self._wake = anyio.Event()

    def wake(self) -> None:
        """Something was written."""
        self._wake.set()

    async def run(self) -> None:
        """Push what is written, by whichever process, until cancelled."""
        options, clock = self._context.options, self._context.runtime.monotonic
        limiter = anyio.CapacityLimiter(options.parallel_sessions)
        schedule = PushSchedule()
        pushing: set[str] = set()

        async def one(session_id: str) -> None:
            try:
                async with limiter:
                    wait = await self._push_one(session_id)
                if wait == math.inf and await self._context.journal.read(
                    lambda conn: has_unsent(conn, session_id)
                ):
                    wait = 0.0  # written while the push was ending
                schedule.put_off(session_id, clock() + wait)
                if wait < math.inf:
                    self._wake.set()
            finally:
                pushing.discard(session_id)

        async with anyio.create_task_group() as group:
            while True:
                # Asked before the outbox is read: what is written after that changes it.
                version = await self._context.journal.read(_data_version)
                waiting = await self._context.journal.read(pending_sessions)
                # A push under way is nobody else's business: a long one must not hold up others.
                due, nearest = schedule.due(waiting, clock(), besides=pushing)
                for name in due:
                    pushing.add(name)
                    group.start_soon(one, name)
                wait = min(max(0.0, nearest - clock()), options.backoff_max)
                if await self._woken(wait, version):
                    # More words often follow the first at once: let them leave together.
                    await anyio.sleep(options.push_delay)
                    schedule.written()

    async def _woken(self, delay: float, version: object) -> bool:
        """Wait for a write here, a write of another process, or the delay; True for a write."""
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
            if await self._context.journal.read(_data_version) != version:
                return True

    async def _push_one(self, session_id: str) -> float:
        """Push a session unless its gate is shut; seconds until it wants to be tried again."""
        wait = await self._context.wait_ms(session_id)
        if wait:
            return wait / 1000
        try:
            result = await self.push_now(session_id)
        except RemoteError:
            return max(0.05, await self._context.wait_ms(session_id) / 1000)
        except SessionClosed:
            raise
        except CachedSessionError as error:
            failures = self._context.local_errors.record("push", session_id, error)
            # What the server took, and the journal could not note, is sent again each time.
            return growing(failures, self._context.options, self._context.runtime.random)
        return self._context.options.claim_patience if result.unsettled else math.inf

    async def push_now(self, session_id: str, *, upto: int | None = None) -> PushResult:
        """Push one session whatever its gates say, or what was written up to a point.

        Raises:
            RemoteError: after the gate was shut.
        """

        async def work() -> PushResult:
            in_doubt = await resolve_claims(self._context, SessionRef.of(session_id))
            result = await push(self._context, session_id, upto=upto)
            result.unsettled = in_doubt
            return result

        self._on_began(session_id)
        try:
            with telemetry.step("push", session_id, self._context.runtime.monotonic):
                result = await self._context.attempt(session_id, work)
        finally:
            # Some of it may have been acknowledged before it failed.
            self._on_ended(session_id)
        self._context.local_errors.clear("push", session_id)
        return result


def _data_version(conn: sqlite3.Connection) -> object:
    # Changes whenever another connection, of this process or another, has committed.
    return conn.execute("PRAGMA data_version").fetchone()
