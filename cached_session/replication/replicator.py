"""The background task that keeps a journal and a server in step: one per open cache and event loop.

Of several processes on one journal the leader pushes and audits for all of them, and the others
wait to replace it. Each process pulls the sessions that it has open. A failure in one session never
stops another.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio
from filelock import BaseFileLock

from cached_session.errors import JournalError, SessionClosed
from cached_session.journal import compaction
from cached_session.remote.protocol import EventSource
from cached_session.replication.audit_loop import Auditor
from cached_session.replication.context import Context
from cached_session.replication.event_listener import Listener
from cached_session.replication.leader import Leader
from cached_session.replication.pull_loop import Puller
from cached_session.replication.push_loop import Pusher
from cached_session.replication.schedule import PullSchedule

__all__ = ["Replicator"]

log = logging.getLogger("cached_session.replication")


class Replicator:
    """The loops that push, pull, audit, listen and compact, until they are cancelled.

    Sessions report events to it on its own event loop. Calls that wait for the server run single
    steps with ``pusher``, ``puller`` and ``auditor``.
    """

    def __init__(
        self,
        context: Context,
        lock: BaseFileLock | None,
        *,
        on_pulled: Callable[[str], None],
        on_pushed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Create a replicator that does nothing yet.

        Args:
            lock: the file lock that makes a process the leader; None for a journal in memory.
            on_pulled: called whenever a pull may have changed a session.
            on_pushed: called after each push of a session.
        """
        self.context = context
        self.leader = Leader(lock)
        self.schedule = PullSchedule(context.options, context.runtime.random)
        self.listener = Listener(context, self._on_event, self._on_stream_lost)
        self.auditor = Auditor(context, self.leader, on_pulled)
        self.puller = Puller(
            context,
            self.schedule,
            is_listening=lambda: self.listener.is_up,
            on_pulled=on_pulled,
            on_went_back=self.auditor.suspect,
        )
        self.pusher = Pusher(
            context, on_began=self.schedule.push_began, on_ended=self._on_push_ended
        )
        self._on_pushed = on_pushed

    # -- events ----------------------------------------------------------------------------------

    def wake(self) -> None:
        """Push now: something was written."""
        self.pusher.wake()

    def follow(self, session_id: str) -> None:
        """Pull a session from now on, first immediately."""
        if self.schedule.follow(session_id):
            self.puller.wake()

    def unfollow(self, session_id: str) -> None:
        """Stop pulling a session that is not open any more."""
        self.schedule.unfollow(session_id)
        self.context.local_errors.clear("pull", session_id)

    def request_pull(self, session_id: str, moment: float) -> None:
        """Pull a session soon, unless a pull has begun since the moment (monotonic seconds)."""
        if self.schedule.request_pull(session_id, moment):
            self.puller.wake()

    def _on_event(self, agent: str | None) -> None:
        if self.schedule.hint(agent, self.context.runtime.monotonic()):
            self.puller.wake()

    def _on_stream_lost(self) -> None:
        self.schedule.stream_lost(self.context.runtime.monotonic())
        self.puller.wake()

    def _on_push_ended(self, session_id: str) -> None:
        self._on_pushed(session_id)
        if self.schedule.push_ended(session_id):
            self.puller.wake()

    # -- the task --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Replicate until cancelled; then release the lock and close the connections."""
        options, remote = self.context.options, self.context.remote
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._supervise, self._push)
                group.start_soon(self._supervise, self.puller.run)
                if options.audit_interval:
                    group.start_soon(self._supervise, self.auditor.run)
                if options.listen and isinstance(remote, EventSource):
                    group.start_soon(self._supervise, lambda: self.listener.run(remote))
                if options.prune_interval:
                    group.start_soon(self._supervise, self._compact)
        finally:
            self.leader.resign()
            with anyio.CancelScope(shield=True):
                await remote.aclose()

    async def _supervise(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop, and run it again after a pause when it has failed."""
        while True:
            try:
                await loop()
            except SessionClosed:
                return
            except JournalError as error:
                log.error("replication cannot use the journal and tries again: %s", error)
            except Exception as error:
                log.exception("replication failed with an unexpected error and is started again")
                self.context.journal.suspect(error)
            await anyio.sleep(self.context.options.backoff_base * 2)

    async def _push(self) -> None:
        await self.leader.lead(self.context.options.watch_interval)
        await self.pusher.run()

    async def _compact(self) -> None:
        while True:
            await anyio.sleep(self.context.options.prune_interval)
            if self.leader.is_leader:
                await compaction.tidy(self.context.journal)
