"""Pulls each session that somebody has open: when its plan says so, and when somebody asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import anyio

from cached_session import telemetry
from cached_session.errors import CachedSessionError, SessionClosed
from cached_session.remote.errors import RemoteError
from cached_session.replication.context import Context
from cached_session.replication.gaps import repair
from cached_session.replication.pull import pull
from cached_session.replication.results import PullResult
from cached_session.replication.schedule import PullSchedule

__all__ = ["Puller"]


@dataclass
class _Pull:
    """A pull under way."""

    began: float
    ended: anyio.Event = field(default_factory=anyio.Event)
    result: PullResult | None = None
    """None while it is under way, and if it failed."""


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
    ) -> None:
        """``is_listening``: whether the stream is up. ``on_pulled`` is told whenever a pull may
        have changed a session, ``on_went_back`` of one that found the server to be behind."""
        self._context = context
        self._schedule = schedule
        self._is_listening = is_listening
        self._on_pulled = on_pulled
        self._on_went_back = on_went_back
        self._wake = anyio.Event()
        self._pulls: dict[str, _Pull] = {}

    def wake(self) -> None:
        """A session is due earlier than it was."""
        self._wake.set()

    async def run(self) -> None:
        """Pull what is due, side by side, until cancelled."""
        clock, options = self._context.runtime.monotonic, self._context.options
        limiter = anyio.CapacityLimiter(options.parallel_sessions)
        pulling: set[str] = set()

        async def one(session_id: str) -> None:
            try:
                async with limiter:
                    await self._pull_one(session_id)
            finally:
                pulling.discard(session_id)
                self._wake.set()

        async with anyio.create_task_group() as group:
            while True:
                # A pull under way is nobody else's business: a long one must not hold up others.
                due, nearest = self._schedule.due(
                    clock(), besides=pulling, is_listening=self._is_listening()
                )
                for name in due:
                    pulling.add(name)
                    group.start_soon(one, name)
                wait = min(max(0.0, nearest - clock()), options.watch_interval)
                with anyio.move_on_after(wait):
                    await self._wake.wait()
                if self._wake.is_set():
                    self._wake = anyio.Event()

    async def _pull_one(self, session_id: str) -> None:
        """Pull a session unless its gate is shut, and plan its next pull."""
        plan = self._schedule.plan(session_id)
        if plan is None:
            return
        clock = self._context.runtime.monotonic
        wait = await self._context.pauses.wait_ms(session_id) / 1000
        if wait:
            plan.due = clock() + wait
            return
        try:
            # Whoever calls `sync` may be at it already.
            result = await self._joined(session_id, plan.wanted)
            if result is None:
                result = await self.pull_now(session_id)
        except RemoteError:
            self._on_pulled(session_id)
            plan.due = clock() + max(0.05, await self._context.pauses.wait_ms(session_id) / 1000)
        except SessionClosed:
            raise
        except CachedSessionError as error:
            self._context.local_errors.record("pull", session_id, error)
            plan.due = clock() + self._context.options.backoff_base * 2
        else:
            self._schedule.pulled(
                session_id,
                plan,
                clock(),
                is_news=bool(result.new),
                is_listening=self._is_listening(),
            )

    async def pull_now(self, session_id: str, *, all_holes: bool = False) -> PullResult:
        """Pull one session whatever its gates say.

        Raises:
            RemoteError: after the gate was shut.
        """
        one = self._pulls[session_id] = _Pull(self._context.runtime.monotonic())
        plan = self._schedule.plan(session_id)
        if plan is not None:
            plan.started = one.began
        try:
            with telemetry.step("pull", session_id, self._context.runtime.monotonic):
                result = await self._context.attempt(
                    session_id,
                    lambda: pull(
                        self._context,
                        session_id,
                        lambda _: self._on_pulled(session_id),
                        all_holes=all_holes,
                    ),
                )
            one.result = result
            self._context.local_errors.clear("pull", session_id)
        finally:
            if self._pulls.get(session_id) is one:
                del self._pulls[session_id]
            one.ended.set()
            is_last = plan is not None and plan.started == one.began
            if one.result is None and is_last and self._schedule.given_up(session_id):
                self.wake()
        if result.went_back:
            await self._on_went_back(session_id)
        if plan is not None:
            plan.fresh, plan.brought = max(plan.fresh, one.began), result
            plan.started = max(plan.started, plan.fresh)
        self._on_pulled(session_id)
        return result

    async def pull_since(self, session_id: str, moment: float) -> PullResult:
        """What a pull that began after the moment (monotonic) brought, and what can be found of
        all that is missing. None is begun where one has been, or is under way.

        Raises:
            RemoteError: after the gate was shut.
        """
        result = await self._joined(session_id, moment)
        plan = self._schedule.plan(session_id)
        if result is None and plan is not None and plan.fresh > moment:
            result = plan.brought
        if result is None:
            return await self.pull_now(session_id, all_holes=True)
        found = await self._context.attempt(session_id, lambda: repair(self._context, session_id))
        self._on_pulled(session_id)
        return replace(result, new=result.new + found.new)

    async def _joined(self, session_id: str, moment: float) -> PullResult | None:
        """The end of a pull under way that began after the moment; None if there is none, or it
        failed."""
        one = self._pulls.get(session_id)
        if one is None or one.began <= moment:
            return None
        await one.ended.wait()
        return one.result
