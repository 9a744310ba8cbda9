"""Hydration: the first read of a session waits until its history is fetched from the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from cached_session.engine.loop_host import LoopHost
from cached_session.engine.notifier import Notifier
from cached_session.history.session_name import split_name
from cached_session.journal.journal import Journal
from cached_session.models import Progress
from cached_session.options import SyncOptions
from cached_session.replication.context import log
from cached_session.runtime import Runtime

__all__ = ["Hydration"]


class Hydration:
    """The first reads of the sessions of one journal. Safe to use from any event loop."""

    def __init__(
        self, journal: Journal, loop_host: LoopHost, options: SyncOptions, runtime: Runtime
    ) -> None:
        self._journal = journal
        self._loop_host = loop_host
        self._options = options
        self._runtime = runtime
        self._done: set[str] = set()
        """Names of the sessions whose reads do not wait for the server's history."""
        self._pulled = Notifier()

    def forget(self) -> None:
        """Forget which sessions need not wait, because another file has replaced the journal."""
        self._done.clear()

    def wake(self, session_id: str) -> None:
        """Make waiting first reads of a session check again, because a page was pulled."""
        self._pulled.wake(session_id)

    async def wait(
        self,
        session_id: str,
        limit: int | None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Wait until a pull that began after this call succeeds, or the journal has enough items.

        The journal has enough items if it contains ``limit`` items of the session.

        The call waits once for each session of a journal, at most `SyncOptions.hydrate_timeout`. It
        does not wait while the server is known to be out of reach.
        """
        if session_id in self._done:
            return
        called_at = self._runtime.monotonic()
        self._loop_host.send(lambda replicator: replicator.request_pull(session_id, called_at))
        with (
            self._pulled.waiting(session_id) as pulled,
            anyio.move_on_after(self._options.hydrate_timeout),
        ):
            while not await self._is_done(session_id, limit, called_at, on_progress):
                await pulled.wait()
                pulled.clear()
        if session_id not in self._done:
            # Do not wait for this write: it is queued after the pages that are being applied.
            recorded = self._journal.first_reads.record_soon(session_id, self._runtime.wall_ms())
            recorded.add_done_callback(_log_failure)
            self._done.add(session_id)

    async def finish(self, session_id: str) -> None:
        """Record that reads of the session need not wait for the server's history."""
        if session_id not in self._done:
            await self._journal.first_reads.record(session_id, self._runtime.wall_ms())
            self._done.add(session_id)

    async def _is_done(
        self,
        session_id: str,
        limit: int | None,
        called_at: float,
        on_progress: Callable[[Progress], None] | None,
    ) -> bool:
        items, is_done = await self._journal.first_reads.of(session_id, limit)
        replicator = self._loop_host.replicator()
        if replicator is not None and replicator.schedule.last_success(session_id) >= called_at:
            is_done = True
        if on_progress is not None:
            on_progress(Progress(split_name(session_id)[1], items, is_done))
        return is_done


def _log_failure(recorded: asyncio.Future[None]) -> None:
    if not recorded.cancelled() and recorded.exception() is not None:
        log.warning(
            "the first read could not be recorded; it waits again after the next opening: %s",
            recorded.exception(),
        )
