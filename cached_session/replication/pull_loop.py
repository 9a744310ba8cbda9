"""The task that pulls each open session when its plan is due, and the pulls on request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import anyio

from cached_session import telemetry
from cached_session.errors import CachedSessionError, SessionClosed
from cached_session.history.session_name import identity_fields
from cached_session.history.session_ref import SessionRef
from cached_session.remote.errors import RemoteError
from cached_session.replication.context import Context
from cached_session.replication.gaps import fill_gaps
from cached_session.replication.pull import pull
from cached_session.replication.results import PullResult
from cached_session.replication.schedule import PullPlan, PullSchedule

__all__ = ["Puller"]

SHORTEST_WAIT = 0.05
"""The shortest time in seconds before a failed pull is repeated. It applies if the pause of the
session is already over."""


@dataclass
class _Pull:
    """A pull under way, and its result for callers that wait for it."""

    began: float
    ended: anyio.Event = field(default_factory=anyio.Event)
    result: PullResult | None = None
    """The result of the pull; None while the pull is under way, and if it has failed."""


class Puller:
    """The pulls of all sessions of a journal."""

    def __init__(
        self,
        context: Context,
        schedule: PullSchedule,
        *,
        is_listening: Callable[[], bool],
        on_pulled: Callable[[str], None],
        on_went_back: Callable[[str], Awaitable[None]],
        on_unannounced: Callable[[str, float], None] = lambda _name, _since: None,
    ) -> None:
        """Prepare a puller.

        Args:
            is_listening: a function that returns whether the event stream is up and trusted.
            on_pulled: called with the session id when a pull may have changed the session.
            on_went_back: called with the session id when the newest memory on the server is older
                than in an earlier pull.
            on_unannounced: called with the session id when a poll has found new operations without
                a request for the pull, and with the beginning of the pull before it.
        """
        self._context = context
        self._schedule = schedule
        self._is_listening = is_listening
        self._on_pulled = on_pulled
        self._on_went_back = on_went_back
        self._on_unannounced = on_unannounced
        self._wake = anyio.Event()
        self._pulls: dict[str, _Pull] = {}

    def wake(self) -> None:
        """Make `run` read the plans again, because a session is due earlier than before."""
        self._wake.set()

    async def run(self) -> None:
        """Pull the sessions that are due, several at a time, until cancelled."""
        clock, options = self._context.runtime.monotonic, self._context.options
        limiter = anyio.CapacityLimiter(options.parallel_sessions)
        pulling: set[str] = set()

        async def run_one(session_id: str) -> None:
            try:
                async with limiter:
                    await self._pull_planned(session_id)
            finally:
                pulling.discard(session_id)
                self._wake.set()

        was_listening = False
        async with anyio.create_task_group() as group:
            while True:
                if was_listening and not self._is_listening():
                    self._schedule.stream_lost(clock())
                was_listening = self._is_listening()
                # Do not wait for the pulls under way: a long pull must not delay other sessions.
                due, nearest = self._schedule.due(
                    clock(), besides=pulling, is_listening=self._is_listening()
                )
                for name in due:
                    pulling.add(name)
                    group.start_soon(run_one, name)
                wait = min(max(0.0, nearest - clock()), options.watch_interval)
                with anyio.move_on_after(wait):
                    await self._wake.wait()
                if self._wake.is_set():
                    self._wake = anyio.Event()

    async def _pull_planned(self, session_id: str) -> None:
        """Pull a session unless it is paused, and plan its next pull."""
        plan = self._schedule.plan(session_id)
        if plan is None:
            return
        context, clock = self._context, self._context.runtime.monotonic
        wait = await context.pauses.wait_ms(session_id) / 1000
        if wait:
            plan.due = clock() + wait
            return
        previous, is_requested = plan.last_success, plan.is_requested
        try:
            # Wait for a pull that a call of `sync` has begun, instead of starting a second pull.
            result = await self._join(session_id, plan.wanted)
            if result is None:
                result = await self.pull_now(session_id)
        except RemoteError:
            self._on_pulled(session_id)
            plan.due = clock() + max(SHORTEST_WAIT, await context.pauses.wait_ms(session_id) / 1000)
        except SessionClosed:
            raise
        except CachedSessionError as error:
            context.local_errors.record("pull", session_id, error)
            plan.due = clock() + context.options.backoff_base * 2
        else:
            if result.new and not is_requested:
                self._on_unannounced(session_id, previous)
            self._schedule.pulled(
                session_id,
                plan,
                clock(),
                is_news=bool(result.new),
                is_listening=self._is_listening(),
            )

    async def pull_now(self, session_id: str, *, all_gaps: bool = False) -> PullResult:
        """Pull one session, whether or not it is paused.

        Args:
            all_gaps: search for every gap, also for gaps that are not due.

        Raises:
            RemoteError: the pull has failed. The pause of the session is already stored.
        """
        context = self._context
        one = self._pulls[session_id] = _Pull(context.runtime.monotonic())
        plan = self._schedule.plan(session_id)
        if plan is not None:
            plan.started = one.began
        try:
            with telemetry.step("pull", identity_fields(session_id), context.runtime.monotonic):
                one.result = await self._attempt(session_id, all_gaps=all_gaps)
            context.local_errors.clear("pull", session_id)
        finally:
            self._end(session_id, one, plan)
        if one.result.went_back:
            await self._on_went_back(session_id)
        if plan is not None:
            plan.last_success, plan.last_result = max(plan.last_success, one.began), one.result
            plan.started = max(plan.started, plan.last_success)
        self._on_pulled(session_id)
        return one.result

    async def _attempt(self, session_id: str, *, all_gaps: bool) -> PullResult:
        context, session = self._context, SessionRef.of(session_id)
        return await context.attempt(
            session_id,
            lambda: pull(context, session, lambda: self._on_pulled(session_id), all_gaps=all_gaps),
        )

    def _end(self, session_id: str, one: _Pull, plan: PullPlan | None) -> None:
        """Resume the callers that wait for a pull; make the session due again if the pull failed.

        The session becomes due only if a request relied on this pull.
        """
        if self._pulls.get(session_id) is one:
            del self._pulls[session_id]
        one.ended.set()
        is_last = plan is not None and plan.started == one.began
        if one.result is None and is_last and self._schedule.pull_failed(session_id):
            self.wake()

    async def pull_since(self, session_id: str, moment: float) -> PullResult:
        """Return the result of a pull that began after ``moment``, and search for every gap.

        A new pull begins only if no pull that began after ``moment`` has succeeded or is under way.

        Args:
            moment: the time in monotonic seconds.

        Raises:
            RemoteError: a request has failed. The pause of the session is already stored.
        """
        result = await self._join(session_id, moment)
        plan = self._schedule.plan(session_id)
        if result is None and plan is not None and plan.last_success > moment:
            result = plan.last_result
        if result is None:
            return await self.pull_now(session_id, all_gaps=True)
        context, session = self._context, SessionRef.of(session_id)
        found = await context.attempt(session_id, lambda: fill_gaps(context, session))
        self._on_pulled(session_id)
        return replace(result, new=result.new + found.new)

    async def _join(self, session_id: str, moment: float) -> PullResult | None:
        """Wait for a pull under way that began after ``moment``, and return its result.

        Return None if no such pull is under way, or if it has failed.
        """
        one = self._pulls.get(session_id)
        if one is None or one.began <= moment:
            return None
        await one.ended.wait()
        return one.result
