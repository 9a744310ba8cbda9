"""`SessionCache`: many sessions that share one journal and one replicator."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from cached_session.engine import network_calls
from cached_session.engine.engine import Engine
from cached_session.engine.open_turns import OpenTurns, Scope
from cached_session.engine.session_config import (
    SessionConfig,
    check_key_prefix,
    check_options_type,
    sdk_settings,
)
from cached_session.errors import SessionClosed
from cached_session.history.session_name import split_name
from cached_session.journal import compaction
from cached_session.models import CompactReport, Progress, Status, SyncReport
from cached_session.options import SyncOptions
from cached_session.paths import journal_path
from cached_session.remote.connect import RemoteSpec
from cached_session.runtime import Runtime
from cached_session.session import CachedSession, name_of, session_over

if TYPE_CHECKING:
    from agents import SessionSettings
    from dakera import AsyncDakeraClient

__all__ = ["KeptTurns", "SessionCache", "open_engine"]

DEFAULTS = SyncOptions()
KEPT_TURNS = 4_096
"""Maximum number of sessions and owners whose turns an adapter keeps. A turn takes about 1 KiB."""


class SessionCache:
    """The sessions of a device with one key prefix, over one journal and one background task.

    All methods except `journal_status` and `compact` concern only the sessions with the cache's own
    ``key_prefix``. The background task syncs all sessions of the journal.

    Making a cache is cheap and does no I/O; the first awaited call opens the journal. A cache is
    safe to use from several tasks, event loops and threads. Cancellation, units and durability are
    as in `CachedSession`.
    """

    key_prefix: str

    def __init__(
        self,
        journal: str | os.PathLike[str] | None = None,
        *,
        url: str | None = None,
        api_key: str | None = None,
        client: AsyncDakeraClient | None = None,
        key_prefix: str = "",
        move: bool = False,
        options: SyncOptions = DEFAULTS,
        runtime: Runtime | None = None,
    ) -> None:
        """Make a cache that uses the server at ``url``, an existing client, or no server.

        Args:
            journal: the path of the SQLite file; None for the default path. With ``":memory:"``,
                nothing is stored on disk.
            url: the server's address. Without ``url`` and ``client``, the cache is local only.
            api_key: key for the server at ``url``; None if the server needs no key.
            client: an ``AsyncDakeraClient`` instead of ``url``. The caller owns and closes it.
            key_prefix: the application of the sessions: the same id under two prefixes is two
                sessions, with two histories. At most 200 characters; empty by default. Caches with
                different prefixes may use one journal.
            move: whether the journal may move to this server. A journal belongs to one server: if
                it syncs with a server at another address, the first call raises `InvalidArgument`
                and sends nothing. With True, everything in it is sent to this server.
            options: intervals, limits, timeouts, durability, for all sessions. If this process
                already has the journal open, the options of the first object are used.
            runtime: clock, randomness and ids; for tests.

        Raises:
            InvalidArgument: an argument is wrong.
        """
        self._closed = True  # `__del__` does not warn if this constructor fails
        check_options_type(options)
        check_key_prefix(key_prefix)
        self.key_prefix = key_prefix
        self._spec = RemoteSpec.make(url, api_key, client, move=move)
        self._engine = Engine.acquire(
            journal_path(journal), self._spec, options, runtime or Runtime()
        )
        # Use weak references. Otherwise a service that makes a session for each request would
        # accumulate all these sessions.
        self._sessions: weakref.WeakSet[CachedSession] = weakref.WeakSet()
        self._closed = False

    def __repr__(self) -> str:
        server = self._spec.server if self._spec else "local"
        prefix = f"key_prefix={self.key_prefix!r}, " if self.key_prefix else ""
        return f"SessionCache({self._engine.path!r}, {prefix}server={server!r})"

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
        """Return a session of this cache, without I/O; see `CachedSession` for the keywords.

        Closing the session is optional: closing the cache closes all its sessions.

        Raises:
            InvalidArgument: an argument is wrong.
            SessionClosed: the cache was closed.
        """
        self._check_open()
        config = SessionConfig(
            session_id,
            self._spec,
            sdk_settings(session_settings),
            pop,
            content,
            hydrate,
            on_progress,
            self.key_prefix,
        )
        session = session_over(self._engine, config, is_closed=lambda: self._closed)
        self._sessions.add(session)
        return session

    async def sessions(self) -> list[str]:
        """Return the ids of this prefix's sessions in the journal, in the order of their creation.

        Raises:
            SessionClosed: the cache was closed.
            JournalError: the journal cannot be read.
        """
        return [split_name(name)[1] for name in await self._own_names()]

    async def sync(self, timeout: float | None = None) -> SyncReport:
        """Push and pull this prefix's sessions in the journal and all open session objects.

        The sessions are synced in sequence; see `CachedSession.sync`. The numbers of the report are
        the sums over all these sessions.

        Raises:
            SyncTimeout, Unauthorized, SyncError, SessionClosed: as `CachedSession.sync`. The
                sessions before the failed one are synced.
        """
        engine = await self._ready()
        return await network_calls.sync(engine, await self._all_names(), timeout)

    async def flush(self, timeout: float | None = None) -> None:
        """Push this prefix's sessions in the journal and all open session objects.

        See `CachedSession.flush`.

        Raises:
            SyncTimeout, Unauthorized, SyncError, SessionClosed: as `CachedSession.flush`.
        """
        engine = await self._ready()
        await network_calls.flush(engine, await self._all_names(), timeout)

    async def _own_names(self) -> list[str]:
        engine = await self._ready()
        return [name for name in await engine.journal.sessions.all() if self._is_own(name)]

    async def _all_names(self) -> list[str]:
        open_ones = [name_of(session) for session in list(self._sessions) if not session._closed]
        return list(dict.fromkeys([*await self._own_names(), *open_ones]))

    def _is_own(self, name: str) -> bool:
        return split_name(name)[0] == self.key_prefix

    def status(self) -> Status:
        """Return the status of this prefix's sessions, together and each by its id.

        It is read from the journal.

        Raises:
            JournalError: the journal cannot be opened or read.
        """
        return self._engine.status(prefix=self.key_prefix, is_closed=self._closed)

    def journal_status(self) -> Status:
        """Return the status of all sessions in the journal, with the status of each key prefix.

        `Status.prefixes` contains the same values as `status` of a cache with that prefix, and
        `Status.sessions` is empty.

        Raises:
            JournalError: the journal cannot be opened or read.
        """
        return self._engine.status(is_closed=self._closed)

    async def compact(self) -> CompactReport:
        """Delete obsolete bookkeeping, and return free space to the file system.

        The items of the sessions do not change. Other writes can run in between. The process that
        syncs the journal also deletes such bookkeeping, in a small step every `prune_interval`.

        Raises:
            SessionClosed: the cache was closed.
            JournalError: the journal cannot be written. The rows deleted so far stay deleted.
        """
        engine = await self._ready()
        return await compaction.compact(engine.journal)

    async def close(self) -> None:
        """Close all sessions of this cache and the journal. A repeated call has no effect.

        The call sends unsent operations of this prefix for at most ``close_timeout``, and not
        while the server is out of reach. The call always finishes: if cancelled, it closes
        everything before it raises the cancellation.
        """
        if self._closed:
            return
        self._closed = True
        self._engine.news.wake()
        try:
            if self._spec is not None:
                await network_calls.drain(self._engine, self._is_own)
        finally:
            for session in list(self._sessions):
                session._leave()
            await self._engine.release(self._spec)

    async def __aenter__(self) -> SessionCache:
        """Open the journal.

        Raises:
            JournalError: the journal cannot be opened. The cache is closed.
        """
        try:
            await self._ready()
        except BaseException:
            # `async with` does not call `__aexit__` if `__aenter__` fails.
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

    async def _ready(self) -> Engine:
        """Return the engine, with an open journal and a running replicator."""
        self._check_open()
        await self._engine.open()
        if self._spec is not None:
            await self._engine.accepted.check(self._spec)
            self._engine.loop_host.ensure_running()
        return self._engine


# For other modules of this package.


class KeptTurns:
    """The open turns of a cache's sessions, for an adapter that makes a session for each call.

    A framework that stores the messages of an exchange one at a time thus stores one turn. Holding
    the sessions instead would keep all of them synced.
    """

    def __init__(self, cache: SessionCache) -> None:
        """Keep the turns of the sessions that were used last."""
        self._cache = cache
        self._turns = lru_cache(maxsize=KEPT_TURNS)(_new_turns)

    def session(self, session_id: str, owner: str | None = None) -> CachedSession:
        """Return a session that goes on with the turns of earlier ones with this id and owner.

        An owner is an agent of the session that speaks beside others.
        """
        session = self._cache.session(session_id)
        session._turns = self._turns((self._cache._engine.number, name_of(session)), owner)
        return session


def _new_turns(scope: Scope, _: str | None) -> OpenTurns:
    return OpenTurns(scope)


async def open_engine(cache: SessionCache) -> Engine:
    """Return the engine of a cache, with an open journal and a running replicator.

    Raises:
        SessionClosed: the cache was closed.
        JournalError: the journal cannot be opened.
    """
    return await cache._ready()
