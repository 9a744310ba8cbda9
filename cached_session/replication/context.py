"""The context of replication: one journal, one server, and the state that the tasks share."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import anyio

from cached_session.errors import CachedSessionError
from cached_session.history.ops import Dot
from cached_session.history.session_name import quoted_name
from cached_session.journal.journal import Journal
from cached_session.journal.tables.writes import Author
from cached_session.options import SyncOptions
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.protocol import Remote
from cached_session.replication.listing_progress import ListingProgress
from cached_session.replication.listing_scan import ListingCheckpoint
from cached_session.replication.local_errors import LocalErrors
from cached_session.replication.pauses import Pauses
from cached_session.replication.push_state import PushState
from cached_session.replication.server_check import ServerCheck
from cached_session.replication.steady_clock import SteadyClock
from cached_session.runtime import Runtime

__all__ = ["Context"]

T = TypeVar("T")

MAX_PROGRESS = 10_000
"""The maximum number of sessions whose progress is in memory. Without it, a pull reads a part of
the listing again."""

log = logging.getLogger("cached_session.replication")


@dataclass
class Context:
    """One journal, one server and their shared state. Use it on one event loop only."""

    journal: Journal
    remote: Remote
    options: SyncOptions
    runtime: Runtime
    writer: str
    """The writer id of the operations that replication itself creates (confirmed pops)."""
    renew_writer: Callable[[str], str] | None = None
    """A function that gives this process another writer id than the given one, and returns it."""
    move: bool = False
    """True if a journal that syncs with another server may move to this one."""
    live_claims: set[tuple[str, Dot, int]] = field(default_factory=set)
    """The claims of confirmed pops under way, as (session id, dot, index of the item)."""
    listing_checkpoints: dict[str, ListingCheckpoint] = field(default_factory=dict)
    """The checkpoints of interrupted first listings, by session id."""
    listing_progress: dict[str, ListingProgress] = field(default_factory=dict)
    """The finished scans of listings, by session id, at most `MAX_PROGRESS`."""
    local_errors: LocalErrors = field(default_factory=LocalErrors)
    """The errors of the journal that stop background work."""

    def __post_init__(self) -> None:
        self._clock = SteadyClock(self.runtime)
        self.push_state = PushState(self.options)
        self.pauses = Pauses(self.journal, self.options, self.runtime.random, self.now_ms)
        self._server_check = ServerCheck(self.journal, self.remote, move=self.move)
        self._locks: weakref.WeakValueDictionary[tuple[str, str], anyio.Lock] = (
            weakref.WeakValueDictionary()
        )
        self._probing = anyio.Lock()

    def now_ms(self) -> int:
        """Return the time of the clock for pauses, claims and gaps, in Unix milliseconds.

        `SteadyClock` describes this clock.
        """
        return self._clock.now_ms()

    def author(self) -> Author:
        """Return the writer and time of an operation that is written now."""
        gap_ms = int(self.options.run_gap * 1000)
        return Author(self.writer, self.runtime.wall_ms(), gap_ms, self.renew_writer)

    def record_progress(self, session_id: str, progress: ListingProgress) -> None:
        """Record the progress after a finished scan of a session's listing."""
        self.listing_progress.pop(session_id, None)
        self.listing_progress[session_id] = progress
        if len(self.listing_progress) > MAX_PROGRESS:
            del self.listing_progress[next(iter(self.listing_progress))]

    def lock(self, kind: str, session_id: str) -> anyio.Lock:
        """Return the lock that allows one task at a time to do this kind of work on a session."""
        lock = self._locks.get((kind, session_id))
        if lock is None:
            lock = self._locks[kind, session_id] = anyio.Lock()
        return lock

    async def check_server(self, session_id: str) -> None:
        """Check once whether this is the server that the journal knows; see `ServerCheck`.

        Raises:
            RemoteError: the journal knows another server, and may not move to this server, or this
                server does not answer.
        """
        await self._server_check.run(session_id)

    async def attempt(self, session_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Run requests for a session. A failure starts a pause, a success ends the pause.

        While the server is paused, only one attempt runs at a time.

        Raises:
            RemoteError: the error of the work, or an unexpected error as `UNREACHABLE`. The pause
                is already stored.
        """
        if await self.pauses.is_server_paused():
            async with self._probing:
                # Do not check the pause again: the callers decide whether to try a paused server.
                return await self._attempt(session_id, work)
        return await self._attempt(session_id, work)

    async def _attempt(self, session_id: str, work: Callable[[], Awaitable[T]]) -> T:
        answered = self.remote.answered
        try:
            await self.check_server(session_id)
            result = await work()
        except RemoteError as error:
            await self.pauses.record_failure(session_id, error)
            raise
        except CachedSessionError:
            raise
        except Exception as error:
            # The cause is a bug or a damaged journal. It must not stop other sessions, and without
            # a pause the loops would retry at once.
            log.exception("sync of %s failed with an unexpected error", quoted_name(session_id))
            # The next call of the journal checks the journal file if damage may be the cause.
            self.journal.suspect(error)
            unexpected = RemoteError(
                Verdict.UNREACHABLE,
                f"unexpected error while syncing: {type(error).__name__}: {error}"[:300],
                scope=Scope.SESSION,
            )
            await self.pauses.record_failure(session_id, unexpected)
            raise unexpected from error
        if self.remote.answered > answered:
            await self.pauses.record_success(session_id)
        return result
