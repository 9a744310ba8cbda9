"""The background task that synchronizes a journal with a server: one per open cache and event loop.

If several processes use one journal, the leader pushes and audits for all of them, and the other
processes wait to become the leader. Each process pulls its own open sessions. A failure in one
session never stops the replication of another session.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio
from filelock import BaseFileLock

from cached_session.errors import JournalError, SessionClosed
from cached_session.journal import compaction
from cached_session.remote.protocol import EventSource
from cached_session.replication.announced_loop import AnnouncedFetcher
from cached_session.replication.audit_loop import Auditor
from cached_session.replication.context import Context
from cached_session.replication.event_listener import Listener
from cached_session.replication.leader import Leader
from cached_session.replication.pull_loop import Puller
from cached_session.replication.push_loop import Pusher
from cached_session.replication.schedule import PullSchedule
from cached_session.replication.stream_trust import StreamTrust

__all__ = ["Replicator"]

log = logging.getLogger("cached_session.replication")


class Replicator:
    """The loops that push, pull, audit, listen and compact, until they are cancelled.

    Sessions report events to the replicator on its own event loop. Calls that wait for the server,
    such as `sync`, run single steps with ``pusher``, ``puller`` and ``auditor``.
    """

    def __init__(
        self,
        context: Context,
        lock: BaseFileLock | None,
        *,
        on_pulled: Callable[[str], None],
        on_pushed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare a replicator; `run` starts its loops.

        Args:
            lock: the file lock that makes a process the leader; None for a journal in memory.
            on_pulled: called with the session id when a pull or an audit may have changed the
                session.
            on_pushed: called with the session id after each push.
        """
        self.context = context
        self.leader = Leader(lock)
        self.schedule = PullSchedule(context.options, context.runtime.random)
        self.listener = Listener(context, self._on_event, self._on_stream_lost)
        self.trust = StreamTrust()
        self._answered = 0
        self._on_session_pulled = on_pulled
        self.auditor = Auditor(context, self.leader, on_pulled)
        self.announced = AnnouncedFetcher(
            context,
            on_pulled=self._on_pulled,
            on_news=self.trust.proved,
            on_given_up=lambda name: self.request_pull(name, context.runtime.monotonic()),
        )
        self.puller = Puller(
            context,
            self.schedule,
            is_listening=self._is_listening,
            on_pulled=self._on_pulled,
            on_went_back=self.auditor.suspect,
            on_unannounced=self._on_unannounced,
        )
        self.pusher = Pusher(
            context, on_began=self.schedule.push_began, on_ended=self._on_push_ended
        )
        self._on_pushed = on_pushed

    # -- events ----------------------------------------------------------------------------------

    def wake(self) -> None:
        """Push unsent operations soon, because an operation was written."""
        self.pusher.wake()

    def follow(self, session_id: str) -> None:
        """Start to pull a session: now, or when its plan is due if the session was open before."""
        if self.schedule.follow(session_id):
            self.puller.wake()

    def unfollow(self, session_id: str) -> None:
        """Stop pulling a session that is no longer open."""
        self.schedule.unfollow(session_id)
        self.announced.forget(session_id)
        self.trust.forget(session_id)
        self.context.local_errors.clear("pull", session_id)

    def request_pull(self, session_id: str, moment: float) -> None:
        """Pull a session soon, unless a pull has begun at ``moment`` or later.

        Args:
            moment: the time in monotonic seconds.
        """
        if self.schedule.request_pull(session_id, moment):
            self.puller.wake()

    def _on_event(self, agent: str | None, memory: str) -> None:
        now = self.context.runtime.monotonic()
        session_id = None if agent is None else self.schedule.session_of(agent)
        if session_id is not None:
            self.trust.heard(session_id, now)
        if session_id is not None and memory:
            self.announced.add(session_id, memory)
        elif self.schedule.hint(agent, now):
            self.puller.wake()

    def _is_listening(self) -> bool:
        """Return whether polls may be rare because of the event stream."""
        return self.listener.is_up and self.trust.is_trusted(self.context.runtime.monotonic())

    def _on_unannounced(self, session_id: str, since: float) -> None:
        """Record that a poll has found an operation that was stored after the time ``since``."""
        if self.listener.up_since <= since and not self.announced.is_waiting(session_id):
            self.trust.found_by_poll(session_id, self.context.runtime.monotonic())

    def _on_pulled(self, session_id: str) -> None:
        self._note_success()
        self._on_session_pulled(session_id)

    def _note_success(self) -> None:
        """Let the listener try again if a request has succeeded since the last call."""
        if self.context.remote.answered > self._answered:
            self._answered = self.context.remote.answered
            self.listener.request_succeeded()

    def _on_stream_lost(self) -> None:
        self.schedule.stream_lost(self.context.runtime.monotonic())
        self.puller.wake()

    def _on_push_ended(self, session_id: str) -> None:
        self._note_success()
        self._on_pushed(session_id)
        if self.schedule.push_ended(session_id):
            self.puller.wake()

    # -- the task --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the loops until cancelled; then release the lock and close the connections."""
        options, remote = self.context.options, self.context.remote
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._supervise, self._push)
                group.start_soon(self._supervise, self.puller.run)
                if options.audit_interval:
                    group.start_soon(self._supervise, self.auditor.run)
                if options.listen and isinstance(remote, EventSource):
                    group.start_soon(self._supervise, lambda: self.listener.run(remote))
                    group.start_soon(self._supervise, self.announced.run)
                if options.prune_interval:
                    group.start_soon(self._supervise, self._compact)
        finally:
            self.leader.resign()
            with anyio.CancelScope(shield=True):
                await remote.aclose()

    async def _supervise(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop, and restart it after a wait when it has failed or ended.

        Return only when the journal is closed.
        """
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
