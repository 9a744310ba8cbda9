"""`SessionCache`: many sessions over one journal, one connection, one replicator."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from cached_session.engine import network_calls
from cached_session.engine.engine import Engine
from cached_session.errors import InvalidArgument, SessionClosed
from cached_session.journal import compaction
from cached_session.journal.tables.sessions import all_sessions
from cached_session.models import CompactReport, Progress, Status, SyncReport
from cached_session.options import SyncOptions
from cached_session.paths import journal_path
from cached_session.remote.connect import RemoteSpec
from cached_session.runtime import Runtime
from cached_session.session import CachedSession

if TYPE_CHECKING:
    from agents import SessionSettings
    from dakera import AsyncDakeraClient

__all__ = ["SessionCache"]

DEFAULTS = SyncOptions()


class SessionCache:
    """The sessions of a device: one journal, one connection, one replicator.

    Making one is cheap and does no I/O; the first awaited call opens. Safe to use from several
    tasks, event loops and threads. Cancellation, units and durability are as of `CachedSession`.
    """

    def __init__(
        self,
        journal: str | os.PathLike[str] | None = None,
        *,
        url: str | None = None,
        api_key: str | None = None,
        client: AsyncDakeraClient | None = None,
        options: SyncOptions = DEFAULTS,
        runtime: Runtime | None = None,
    ) -> None:
        """Make a cache over a server at ``url``, over a client that stays the caller's, or local.

        Args:
            journal: the SQLite file; None: a default place; ``":memory:"``: kept nowhere.
            url: the server's address; None, and no ``client``: local only.
            api_key: for ``url``; None if the server asks for none.
            client: an ``AsyncDakeraClient`` instead of ``url``; the caller keeps and closes it.
            options: intervals, limits, timeouts, durability, for all sessions. Where this process
                has the journal open already, those of the object that opened it hold.
            runtime: clock, randomness and ids; for tests.

        Raises:
            InvalidArgument: an argument makes no sense.
        """
        self._closed = True
        if not isinstance(options, SyncOptions):
            raise InvalidArgument(f"options={options!r} must be a SyncOptions")
        self._spec = RemoteSpec.make(url, api_key, client)
        self._engine = Engine.acquire(
            journal_path(journal), self._spec, options, runtime or Runtime()
        )
        # Weakly: a service that makes one a request must not collect them.
        self._sessions: weakref.WeakSet[CachedSession] = weakref.WeakSet()
        self._closed = False

    def __repr__(self) -> str:
        server = self._spec.server if self._spec else "local"
        return f"SessionCache({self._engine.path!r}, server={server!r})"

    def session(
        self,
        session_id: str,
        *,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        pop: Literal["local", "confirmed"] = "local",
        content: Literal["text", "none"] = "text",
        hydrate: bool = True,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> CachedSession:
        """One of the device's sessions; see `CachedSession` for the keywords. No I/O.

        Closing it is optional: closing the cache closes all of them.

        Raises:
            InvalidArgument: an argument makes no sense.
            SessionClosed: the cache was closed.
        """
        self._check_open()
        session = CachedSession.__new__(CachedSession)
        session._setup(
            session_id,
            None,
            self._spec,
            session_settings,
            pop,
            content,
            hydrate,
            self._engine.options,
            on_progress,
            None,
            engine=self._engine,
            is_engine_closed=lambda: self._closed,
        )
        self._sessions.add(session)
        return session

    async def sessions(self) -> list[str]:
        """The ids of every session that the journal knows, in the order in which it met them.

        Raises:
            SessionClosed: the cache was closed.
            JournalError: the journal cannot be read.
        """
        await self._ready()
        return await self._engine.journal.read(all_sessions)

    async def sync(self, timeout: float | None = None) -> SyncReport:
        """`CachedSession.sync` for every session of the journal, and every one that is open, one
        after the other; the report counts all of them.

        Raises:
            SyncTimeout, Unauthorized, SyncError, SessionClosed: as `CachedSession.sync`. The
                sessions that were done until then are synced.
        """
        await self._ready()
        return await network_calls.sync(self._engine, await self._names(), timeout)

    async def flush(self, timeout: float | None = None) -> None:
        """`CachedSession.flush` for every session of the journal, and every one that is open.

        Raises:
            SyncTimeout, Unauthorized, SyncError, SessionClosed: as `CachedSession.flush`.
        """
        await self._ready()
        await network_calls.flush(self._engine, await self._names(), timeout)

    async def _names(self) -> list[str]:
        known = await self._engine.journal.read(all_sessions)
        open_ones = [session.session_id for session in list(self._sessions) if not session._closed]
        return list(dict.fromkeys([*known, *open_ones]))

    def status(self) -> Status:
        """How things stand in all, and session by session, from the journal alone.

        Raises:
            JournalError: the journal cannot be opened or read.
        """
        return self._engine.status(None, is_closed=self._closed)

    async def compact(self) -> CompactReport:
        """Let go of bookkeeping that nothing needs any more, and give the space that it and other
        removals have freed back to the file system. Changes nothing that any session shows.

        The process that replicates does the same by itself, a little every `prune_interval`.
        Other writes take their turns meanwhile.

        Raises:
            SessionClosed: the cache was closed.
            JournalError: the journal cannot be written; what was done until then stays done.
        """
        await self._ready()
        return await compaction.compact(self._engine.journal)

    async def close(self) -> None:
        """Close every session and the journal. Idempotent, and it always finishes: if cancelled,
        everything is closed before the cancellation goes on.

        Waits at most ``close_timeout`` for unsent operations, and not at all while the server is
        out of reach.
        """
        if self._closed:
            return
        self._closed = True
        self._engine.news.wake()
        try:
            if self._spec is not None:
                await network_calls.drain(self._engine, None)
        finally:
            for session in list(self._sessions):
                session._leave()
            await self._engine.release(self._spec)

    async def __aenter__(self) -> SessionCache:
        """Open the journal.

        Raises:
            JournalError: it cannot be opened.
        """
        try:
            await self._ready()
        except BaseException:
            # `async with` calls no exit for an entry that failed.
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(
                f"{self!r} was never closed; use 'async with' or await close()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosed("the cache was closed; make a new SessionCache")

    async def _ready(self) -> None:
        self._check_open()
        await self._engine.open()
        if self._spec is not None:
            self._engine.loop_host.keep()
