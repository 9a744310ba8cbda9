"""The background task: one per open cache and event loop, which owns all that goes on in it.

Of several processes on one journal the leader pushes and audits for all of them, and the others
look out for its death; each pulls the sessions that it has open. A failure in one session never
stops another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from filelock import BaseFileLock

from cached_session.errors import JournalError, SessionClosed
from cached_session.journal import compaction
from cached_session.remote.protocol import EventSource
from cached_session.replication.audit_loop import Auditor
from cached_session.replication.context import Context, log
from cached_session.replication.event_listener import Listener
from cached_session.replication.leader import Leader
from cached_session.replication.pull_loop import Puller
from cached_session.replication.push_loop import Pusher
from cached_session.replication.schedule import PullSchedule

__all__ = ["Replicator"]


class Replicator:
    """Keeps a journal and a server in step until cancelled.

    From its own event loop, sessions tell it what has happened, and the calls that wait for the
    server take steps of their own with ``pusher``, ``puller`` and ``auditor``.
    """

    def __init__(
        self,
        context: Context,
        lock: BaseFileLock | None,
        *,
        on_pulled: Callable[[str], None],
        on_pushed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.context = context
        self.leader = Leader(lock)
        self.schedule = PullSchedule(context.options, context.runtime.random)
        self.listener = Listener(context, self._hinted, self._deafened)
        self.auditor = Auditor(context, self.leader, on_pulled)
        self.puller = Puller(
            context,
            self.schedule,
            is_listening=lambda: self.listener.is_up,
            on_pulled=on_pulled,
            on_went_back=self.auditor.suspect,
        )
        self.pusher = Pusher(context, on_began=self.schedule.push_began, on_ended=self._push_ended)
        self._on_pushed = on_pushed

    # -- what has happened -----------------------------------------------------------------------

    def wake(self) -> None:
        """Something was written."""
        self.pusher.wake()

    def follow(self, session_id: str) -> None:
        """Pull this session from now on, first at once."""
        if self.schedule.follow(session_id):
            self.puller.wake()

    def unfollow(self, session_id: str) -> None:
        """Nobody has this session open any more."""
        self.schedule.unfollow(session_id)
        self.context.local_errors.clear("pull", session_id)

    def freshen(self, session_id: str, moment: float) -> None:
        """Pull this session soon, unless a pull has begun since the moment (monotonic)."""
        if self.schedule.freshen(session_id, moment):
            self.puller.wake()

    def _hinted(self, agent: str | None) -> None:
        if self.schedule.hint(agent, self.context.runtime.monotonic()):
            self.puller.wake()

    def _deafened(self) -> None:
        self.schedule.deafened(self.context.runtime.monotonic())
        self.puller.wake()

    def _push_ended(self, session_id: str) -> None:
        self._on_pushed(session_id)
        if self.schedule.push_ended(session_id):
            self.puller.wake()

    # -- the task --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Replicate until cancelled; lets go of the lock and of the connections on the way out."""
        options, remote = self.context.options, self.context.remote
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._supervised, self._push)
                group.start_soon(self._supervised, self.puller.run)
                if options.audit_interval:
                    group.start_soon(self._supervised, self.auditor.run)
                if options.listen and isinstance(remote, EventSource):
                    group.start_soon(self._supervised, lambda: self.listener.run(remote))
                if options.prune_interval:
                    group.start_soon(self._supervised, self._tidy)
        finally:
            self.leader.resign()
            with anyio.CancelScope(shield=True):
                await remote.aclose()

    async def _supervised(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Start a loop again after an error that nobody foresaw: reported, and never for good."""
        while True:
            try:
                await loop()
            except SessionClosed:
                return
            except JournalError as error:
                log.error("replication waits for the journal: %s", error)
            except Exception as error:  # noqa: BLE001 - one that nobody foresaw must not end it
                log.exception("replication stumbled and goes on")
                self.context.journal.suspect(error)
            await anyio.sleep(self.context.options.backoff_base * 2)

    async def _push(self) -> None:
        await self.leader.lead(self.context.options.watch_interval)
        await self.pusher.run()

    async def _tidy(self) -> None:
        while True:
            await anyio.sleep(self.context.options.prune_interval)
            if self.leader.is_leader:
                await compaction.tidy(self.context.journal)
