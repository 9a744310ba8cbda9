"""What replication works with: one journal, one server, and the gates between them."""

from __future__ import annotations

import logging
import sqlite3
import weakref
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import anyio

from cached_session.errors import CachedSessionError
from cached_session.history.ids import agent_id
from cached_session.history.ops import Dot
from cached_session.journal.journal import Journal
from cached_session.journal.tables import pauses
from cached_session.journal.tables.meta import read_meta, write_meta
from cached_session.journal.tables.sessions import forget_server
from cached_session.journal.tables.writes import Author
from cached_session.options import SyncOptions
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.protocol import Remote
from cached_session.replication.backoff import pause_after
from cached_session.replication.batch_size import BatchSize
from cached_session.replication.listing_scan import ListingCheckpoint
from cached_session.replication.local_errors import LocalErrors
from cached_session.runtime import Runtime

__all__ = ["Context"]

T = TypeVar("T")

RATE_LIMITED = 429
SENT_MOST = 2000
"""Ids remembered: two of the largest requests. The stream is behind by less than that, or the
session is pulled once for nothing."""

log = logging.getLogger("cached_session.replication")


class Sent:
    """Ids of memories that were sent lately."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def __contains__(self, identity: str) -> bool:
        return identity in self._ids

    def add(self, identities: Iterable[str]) -> None:
        """Before they are sent: the stream may be quicker than the answer."""
        self._ids.update(dict.fromkeys(identities))
        for identity in list(islice(self._ids, max(0, len(self._ids) - SENT_MOST))):
            del self._ids[identity]


@dataclass
class Context:
    """One journal and one server. All of it belongs to one event loop."""

    journal: Journal
    remote: Remote
    options: SyncOptions
    runtime: Runtime
    writer: str
    """Who signs operations that replication itself writes (confirmed pops)."""
    live_claims: set[tuple[str, Dot, int]] = field(default_factory=set)
    """Confirmed pops whose answer is being waited for right now."""
    taken: dict[str, set[str]] = field(default_factory=dict)
    """Memories of a store that was broken off which the server has acknowledged, by session."""
    doubted: set[str] = field(default_factory=set)
    """Sessions of which the server had not kept those: what it acknowledges anew is believed."""
    sent: Sent = field(default_factory=Sent)
    """What the event stream tells of that is no news here."""
    listing_checkpoints: dict[str, ListingCheckpoint] = field(default_factory=dict)
    """Where the first listing of each session was interrupted."""
    local_errors: LocalErrors = field(default_factory=LocalErrors)
    """Why the journal keeps what goes on in the background from going on."""
    body: BatchSize = field(init=False)
    """How large a store request may be."""
    _most: dict[str, int] = field(default_factory=dict)
    """Memories in one store request where a rate limit has refused more, by session."""
    _locks: weakref.WeakValueDictionary[tuple[str, str], anyio.Lock] = field(
        default_factory=weakref.WeakValueDictionary
    )
    _probe: anyio.Lock = field(default_factory=anyio.Lock)
    _has_met: bool = False

    def __post_init__(self) -> None:
        self.body = BatchSize(self.options)
        self._last_ms, self._last = self.runtime.wall_ms(), self.runtime.monotonic()

    def now_ms(self) -> int:
        """The time by which pauses are counted: the wall clock, by which the next opening knows
        them, unless it stands still or goes back; a pause must end all the same."""
        moment = self.runtime.monotonic()
        steady = self._last_ms + int((moment - self._last) * 1000)
        now = self.runtime.wall_ms()
        if now >= steady:
            self._last_ms, self._last = now, moment
        return max(now, steady)

    def author(self) -> Author:
        """The signature of an operation written now."""
        return Author(self.writer, self.runtime.wall_ms(), int(self.options.run_gap * 1000))

    def lock(self, kind: str, session_id: str) -> anyio.Lock:
        """At most one push, one pull and one look at its claims of a session at a time."""
        lock = self._locks.get((kind, session_id))
        if lock is None:
            lock = self._locks[kind, session_id] = anyio.Lock()
        return lock

    def batch_most(self, session_id: str) -> int:
        """Memories that one store request of this session may have."""
        return min(self.options.max_batch_memories, self._most.get(session_id, 1 << 30))

    def batch_refused(self, session_id: str, size: int) -> None:
        """The server's rate limit has no room for a request of this size: the next is half of it,
        because one that is larger than the whole limit would never be taken."""
        self._most[session_id] = max(1, size // 2)

    def batch_taken(self, session_id: str, size: int) -> None:
        """A request of this size was taken: with time, larger ones are tried again."""
        most = self._most.get(session_id)
        if most is not None and size >= most:
            self._most[session_id] = most + 1 + most // 8
            if self._most[session_id] >= self.options.max_batch_memories:
                del self._most[session_id]

    async def wait_ms(self, session_id: str, *, asked_only: bool = False) -> int:
        """How long the gates ask to wait before this session's next attempt.

        ``asked_only``: count only the pauses that the server itself asked for.
        """
        now = self.now_ms()

        def wait(conn: sqlite3.Connection) -> int:
            found = [pauses.pause_of(conn, whose) for whose in (None, session_id)]
            return max(
                gate.wait_ms(now)
                if gate is not None and not (asked_only and gate.kind != Verdict.BUSY.value)
                else 0
                for gate in found
            )

        return await self.journal.read(wait)

    async def attempt(self, session_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do some requests for a session; its failure shuts a gate, its success opens them.

        While the server is out of reach, one attempt at a time asks whether it is back.

        Raises:
            RemoteError: as the work did, after the gate was shut.
        """
        if await self._is_offline():
            async with self._probe:
                # Whoever asked first may have been answered; if not, its gate is ours too.
                return await self._attempt(session_id, work)
        return await self._attempt(session_id, work)

    async def meet_server(self, session_id: str) -> None:
        """Before the first request: acknowledgements refer to one server. On another one, once it
        has answered (a mistyped address never does), everything is to be sent again.

        Raises:
            RemoteError: another server than the journal knows does not answer.
        """
        server = self.remote.server
        if self._has_met:
            return
        known = await self.journal.read(lambda conn: read_meta(conn).get("server"))
        if known is not None and known != server:
            await self.remote.list_memories(agent_id(session_id), offset=0, limit=1)

        def note(conn: sqlite3.Connection) -> str | None:
            # Asked again inside: several may come here at once, and one of them changes it.
            before = read_meta(conn).get("server")
            if before == server:
                return None
            if before is not None:
                forget_server(conn)
            write_meta(conn, server=server)
            return before

        if known != server:
            left = await self.journal.write(note)
            if left is not None:
                log.warning("the journal goes on with %s instead of %s", server, left)
        self._has_met = True

    async def _is_offline(self) -> bool:
        return await self.journal.read(lambda conn: pauses.pause_of(conn, None)) is not None

    async def _attempt(self, session_id: str, work: Callable[[], Awaitable[T]]) -> T:
        answered = self.remote.answered
        try:
            await self.meet_server(session_id)
            result = await work()
        except RemoteError as error:
            await self.shut(session_id, error)
            raise
        except CachedSessionError:
            raise
        except Exception as error:
            # Nobody foresaw it. It must not reach another session, nor be tried again at once.
            log.exception("sync of %r stumbled", session_id)
            # Perhaps over what the journal gave it: its next call looks whether that is sound.
            self.journal.suspect(error)
            stumble = RemoteError(
                Verdict.UNREACHABLE,
                f"unforeseen while syncing: {type(error).__name__}: {error}"[:300],
                scope=Scope.SESSION,
            )
            await self.shut(session_id, stumble)
            raise stumble from error
        if self.remote.answered > answered:
            await self.reopen(session_id)
        return result

    async def shut(self, session_id: str, error: RemoteError) -> float:
        """Shut the gate that a failure shuts, for everybody behind it; seconds until it may be
        tried again."""
        now = self.now_ms()
        whose = None if error.scope is Scope.SERVER else session_id
        if whose is not None and error.status == RATE_LIMITED:
            # Two sessions told to wait at one time: the limit is the server's, and is everybody's.
            # A fleet of sessions that each had to find out would use it up with finding out.
            others = await self.journal.read(
                lambda conn: pauses.waiting(conn, Verdict.BUSY.value, now, session_id)
            )
            whose = None if others else whose
        before = await self.journal.read(lambda conn: pauses.pause_of(conn, whose))
        failures = before.failures if before else 0
        pause = pause_after(error, failures, self.options, self.runtime.random)
        kind = "unauthorized" if error.status in (401, 403) else error.verdict.value
        await self.journal.write(
            lambda conn: pauses.shut(
                conn,
                whose,
                pause_ms=int(pause * 1000),
                now_ms=now,
                kind=kind,
                reason=error.reason,
            )
        )
        level = logging.WARNING if before is None else logging.DEBUG
        log.log(
            level,
            "sync of %r paused for %.1f s: %s",
            session_id,
            pause,
            error.reason,
            extra={"session": session_id, "verdict": kind, "pause": pause},
        )
        return pause

    async def reopen(self, session_id: str) -> None:
        """Something was answered and brought the session on: failures are counted anew."""
        now = self.now_ms()
        busy = Verdict.BUSY.value

        def shut(conn: sqlite3.Connection) -> bool:
            found = [pauses.pause_of(conn, whose) for whose in (None, session_id)]
            return any(gate and not (gate.kind == busy and gate.wait_ms(now)) for gate in found)

        if await self.journal.read(shut):
            # What the server asked for while this attempt was under way is still to be kept.
            await self.journal.write(
                lambda conn: pauses.end_pauses(conn, session_id, now_ms=now, except_kind=busy)
            )
            log.info("sync of %r goes on", session_id, extra={"session": session_id})
