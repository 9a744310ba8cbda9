"""`CachedSession`: one conversation, as an agent sees it."""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from cached_session.engine import importer, network_calls
from cached_session.engine.changes import Changes
from cached_session.engine.engine import Engine
from cached_session.errors import InvalidArgument, SessionClosed
from cached_session.history.ops import Dot
from cached_session.journal import get_items, search
from cached_session.journal.sqlite.codec import decode_rows, encode_items
from cached_session.journal.tables import item_rows, writes
from cached_session.journal.tables.change_cursor import ChangeCursor
from cached_session.journal.tables.parked_operations import Parked
from cached_session.models import (
    Entry,
    ImportProgress,
    ImportReport,
    Progress,
    Recall,
    Status,
    SyncReport,
)
from cached_session.options import SyncOptions
from cached_session.paths import journal_path
from cached_session.remote.connect import RemoteSpec
from cached_session.replication.audit import AuditReport
from cached_session.runtime import Runtime

if TYPE_CHECKING:
    from agents import SessionSettings, TResponseInputItem
    from dakera import AsyncDakeraClient

__all__ = ["CachedSession"]

DEFAULTS = SyncOptions()
MOST_ITEMS = 1 << 40
"""More than any journal holds, and less than SQLite's largest integer."""


class CachedSession:
    """A conversation that lives on the device and is synced with a Dakera server in the background.

    It has the shape of the Agents SDK's ``Session`` protocol: pass it to ``Runner.run``. Reads and
    writes touch the local journal only, and cost the same whether the server is near, slow or gone.
    Making one is cheap and does no I/O; the first awaited call opens the journal.

    Safe to use from several tasks, event loops and threads; two objects over the same journal in
    one process share what is underneath. Close it, or use ``async with``.

    Times are seconds. A call that is cancelled leaves the journal usable: a read has changed
    nothing, a write is entirely in or entirely out (its outcome is awaited before the cancellation
    goes on), and a call that waits for the server leaves done what was done.
    """

    session_id: str
    session_settings: SessionSettings | None

    def __init__(
        self,
        session_id: str,
        *,
        client: AsyncDakeraClient | None = None,
        journal: str | os.PathLike[str] | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        pop: Literal["local", "confirmed"] = "local",
        content: Literal["text", "none"] = "text",
        hydrate: bool = True,
        options: SyncOptions = DEFAULTS,
        on_progress: Callable[[Progress], None] | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        """Make a session over an existing client, or local only. See `from_url` for a server's
        address.

        Args:
            session_id: names the conversation; the same id on another device is the same history.
            client: an ``AsyncDakeraClient`` that stays the caller's to close; None: local only.
            journal: the SQLite file, shared by all sessions of a device; None: a default place in
                the user's data directory; ``":memory:"``: kept nowhere.
            session_settings: as of the SDK: ``limit`` caps `get_items` when it is given none.
            pop: ``"confirmed"`` claims an item on the server before `pop_item` returns it.
            content: ``"none"`` keeps readable text out of the server's index.
            hydrate: whether the first read of an unknown session waits for its history.
            options: intervals, limits, timeouts, durability. Where this process has the journal
                open already, those of the object that opened it hold, and the log says so.
            on_progress: told after each page of a first hydration.
            runtime: clock, randomness and ids; for tests.

        Raises:
            InvalidArgument: an argument makes no sense.
        """
        spec = RemoteSpec.make(None, None, client)
        self._setup(
            session_id,
            journal,
            spec,
            session_settings,
            pop,
            content,
            hydrate,
            options,
            on_progress,
            runtime,
        )

    @classmethod
    def from_url(
        cls,
        session_id: str,
        *,
        url: str,
        api_key: str | None = None,
        journal: str | os.PathLike[str] | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        pop: Literal["local", "confirmed"] = "local",
        content: Literal["text", "none"] = "text",
        hydrate: bool = True,
        options: SyncOptions = DEFAULTS,
        on_progress: Callable[[Progress], None] | None = None,
        runtime: Runtime | None = None,
    ) -> CachedSession:
        """Make a session over a Dakera server at ``url``; see the constructor for the rest.

        The connection is made when first needed, by the background task, and is the session's own.
        A journal belongs to one server at a time: once another address answers, everything that
        the journal holds is sent there.

        Raises:
            InvalidArgument: ``url`` is no http or https address, or another argument is wrong.
        """
        if url is None:
            raise InvalidArgument("url=None is not the address of a server; use http://host:port")
        session = cls.__new__(cls)
        session._setup(
            session_id,
            journal,
            RemoteSpec.make(url, api_key, None),
            session_settings,
            pop,
            content,
            hydrate,
            options,
            on_progress,
            runtime,
        )
        return session

    def _setup(
        self,
        session_id: str,
        journal: object,
        spec: RemoteSpec | None,
        settings: Any,
        pop: str,
        content: str,
        hydrate: bool,
        options: SyncOptions,
        on_progress: Callable[[Progress], None] | None,
        runtime: Runtime | None,
        engine: Engine | None = None,
        is_engine_closed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._closed = True  # until everything below has gone well
        _check(session_id, pop, content, hydrate, options)
        self.session_id = session_id
        self.session_settings = _settings(settings)
        if pop == "confirmed" and spec is None:
            raise InvalidArgument(
                "pop='confirmed' asks a server who may have the item, and this session has none; "
                "use from_url, pass client, or use pop='local'"
            )
        self._spec = spec
        self._confirmed = pop == "confirmed"
        self._private = content == "none"
        self._hydrate = hydrate
        self._on_progress = on_progress
        self._following = False
        # A session of a cache lives on the cache's share of the engine, and closes with it.
        self._owns_share = engine is None
        self._is_engine_closed = is_engine_closed
        self._engine = engine or Engine.acquire(
            journal_path(journal), spec, options, runtime or Runtime()
        )
        self._closed = False

    def __repr__(self) -> str:
        server = self._spec.server if self._spec else "local"
        return (
            f"CachedSession({self.session_id!r}, journal={self._engine.path!r}, server={server!r})"
        )

    # -- the Session protocol --------------------------------------------------------------------

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The latest ``limit`` items in chronological order; all of them if there is no limit.

        Never waits for the network, except that the first read of a session which this journal has
        never met waits for its history, at most ``hydrate_timeout``. The result is one snapshot of
        fresh objects: changing them changes nothing stored.

        Args:
            limit: overrides ``session_settings.limit``; zero or less gives an empty list.

        Raises:
            SessionClosed: the session was closed.
            InvalidArgument: ``limit`` is no whole number.
            JournalError: the journal cannot be read.
        """
        # What `_ready` does, here: another coroutine costs a twentieth of a read of 20 items.
        self._check_open()
        engine = self._engine
        if not engine.journal.is_open:
            await engine.open()
        limit = _limit(_settings_limit(self.session_settings) if limit is None else limit)
        if limit is not None and limit <= 0:
            return []
        if self._spec is not None:
            self._attend()
            if self._hydrate:
                await engine.meet(self.session_id, limit, self._on_progress)
            engine.touch(self.session_id)
        return await get_items.history(engine.journal, engine.tail_cache, self.session_id, limit)

    async def add_items(self, items: Sequence[TResponseInputItem]) -> None:
        """Append a batch of items.

        On return the batch is in the journal, durable, and visible to every later read of every
        session over this journal. It is one operation: contiguous in every replica's history, and
        visible elsewhere entirely or not at all. If cancelled, it is entirely in or entirely out.

        Raises:
            InvalidArgument: JSON cannot carry an item; nothing of the batch is stored.
            SessionClosed: the session was closed (also for an empty batch).
            JournalFull: the disk is full, or a limit on unsent work (`SyncOptions`) was reached and
                no room came in time; nothing of the batch is stored.
            JournalError: the journal cannot be written; nothing of the batch is stored.
        """
        self._check_open()
        if not items:
            return
        encoded = encode_items(list(items))
        engine = await self._ready()
        await engine.append(
            self.session_id, encoded, private=self._private, leaves=self._spec is not None
        )
        self._wrote()

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove and return the latest item; None if there is none.

        With ``pop="local"`` the item is gone from the journal on return, and from the other devices
        once they sync; two tasks or processes on one journal never get the same one. With
        ``pop="confirmed"`` the server is asked first, and no two devices get the same item as far
        as the server's delete is atomic.

        If cancelled, nothing is returned: the item is still there, or it is gone, as for any write.
        In confirmed mode a claim that was under way is settled later, as after a crash.

        Raises:
            PopUnconfirmed: confirmed mode, and the server did not answer, or its yes could not be
                written down; nothing is returned.
            Unauthorized, SyncError: confirmed mode, and the server refuses; nothing is popped.
            SessionClosed: the session was closed.
            JournalError: the journal cannot be written; nothing is popped.
        """
        engine = await self._ready()
        if self._confirmed:
            row = await network_calls.pop_confirmed(engine, self.session_id)
        else:
            row = await engine.pop(self.session_id)
        if row is None:
            return None
        self._wrote()
        item: TResponseInputItem = decode_rows([row])[0]
        return item

    async def clear_session(self) -> None:
        """Remove everything that this journal has of the session. On return it is gone here, and
        durably so; elsewhere it goes once synced. What another device added meanwhile, unseen here,
        survives. If cancelled, all of it is gone or nothing.

        Raises:
            SessionClosed: the session was closed.
            JournalError: the journal cannot be written; nothing is removed.
        """
        engine = await self._ready()
        author = engine.author()
        await engine.journal.write(lambda conn: writes.clear(conn, author, self.session_id))
        self._wrote()

    async def replace_items(
        self, entries: Sequence[Entry], items: Sequence[TResponseInputItem] = ()
    ) -> None:
        """Remove the items of these `entries`, wherever they stand, and append a batch, in one
        transaction: readers see all of it or nothing.

        Each removal is a recorded pop of that very item, so it merges as one does: an item that
        another device has removed too is removed once, and what came in between stays. The new
        items stand at the end. With ``pop="confirmed"`` nobody is asked: nothing is handed out. If
        cancelled, all of it is done or nothing.

        Args:
            entries: what to remove; those that are gone already are passed over.
            items: what to append; nothing by default.

        Raises:
            InvalidArgument: one of them is no entry, or JSON cannot carry an item; nothing changes.
            SessionClosed, JournalFull, JournalError: as `add_items`; nothing changes.
        """
        places = [_place(entry) for entry in entries]
        if not places:
            await self.add_items(items)
            return
        encoded = encode_items(list(items))
        engine = await self._ready()
        if encoded:
            await engine.append(
                self.session_id,
                encoded,
                private=self._private,
                leaves=self._spec is not None,
                instead_of=places,
            )
        else:
            author = engine.author()
            await engine.journal.write(
                lambda conn: writes.remove(conn, author, self.session_id, places)
            )
        self._wrote()

    async def import_items(
        self,
        items: Iterable[TResponseInputItem] | AsyncIterable[TResponseInputItem],
        *,
        source: str,
        on_progress: Callable[[ImportProgress], None] | None = None,
    ) -> ImportReport:
        """Append the items of another store, of which an earlier call may have brought a part.

        They are written in batches. How far it came is written in the transaction of each batch:
        called again with the same source, after a crash or because it has grown, only what is not
        here yet is added. If cancelled, whole batches are in.

        Args:
            items: all items of the source, from its beginning, in order.
            source: what the source is, such as ``"redis:user-123"``; the same at each call.
            on_progress: told after each batch.

        Raises:
            InvalidArgument: JSON cannot carry an item, or the source no longer begins with what
                was imported of it. Batches before that are in.
            SessionClosed, JournalError: as `add_items`.
        """
        if not source:
            raise InvalidArgument(f"source={source!r} must name what the items come from")
        engine = await self._ready()
        return await importer.carry(
            engine,
            self.session_id,
            f"items:{source}",
            importer.encoded(items),
            private=self._private,
            is_named=True,
            on_progress=on_progress,
        )

    # -- sync ------------------------------------------------------------------------------------

    async def sync(self, timeout: float | None = None) -> SyncReport:
        """Push and pull until both are done, trying again while the server is out of reach.

        On return everything acknowledged before the call is on the server, but for what is parked,
        and everything that the server listed is in the journal. If cancelled, what was sent and
        fetched until then stays so, and the rest goes on in the background.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            SyncTimeout: the time ran out; its cause says why. The work goes on in the background.
            Unauthorized: the server refuses the key or its scope.
            SyncError: there is no server.
            SessionClosed: the session was closed.
        """
        engine = await self._ready()
        return await network_calls.sync(engine, [self.session_id], timeout)

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until everything acknowledged so far is on the server. If cancelled, it goes on in
        the background.

        Args:
            timeout: as of `sync`.

        Raises:
            SyncTimeout, Unauthorized, SessionClosed: as `sync`.
            SyncError: there is no server, or some of it is parked.
        """
        engine = await self._ready()
        await network_calls.flush(engine, [self.session_id], timeout)

    def status(self) -> Status:
        """How things stand, from the journal alone; opens it if need be. Works when closed, too.

        It is no coroutine and holds the caller up for some short queries, or, where another process
        holds the file locked while it is opened, for at most ``busy_timeout``.

        Raises:
            JournalError: the journal cannot be opened or read.
        """
        closed = self._closed or self._is_engine_closed()
        return self._engine.status(self.session_id, is_closed=closed)

    async def audit(self) -> AuditReport:
        """Compare the server with the journal, put back what the server lost, fetch what was
        missed, have it forget what was removed.

        On return each memory that the server listed was compared; what was put back is on the
        server. It lists the whole session, so it takes as long as that takes. If cancelled, what
        was mended until then stays so.

        Raises:
            Unauthorized, SyncError: the server cannot be asked; running it again goes on.
            SessionClosed: the session was closed.
            JournalError: the journal cannot be read or written; running it again goes on.
        """
        engine = await self._ready()
        return await network_calls.audit(engine, self.session_id)

    # -- looking closer --------------------------------------------------------------------------

    async def entries(self, limit: int | None = None) -> list[Entry]:
        """The latest ``limit`` items (all by default) with their place in the one history, in
        chronological order. One snapshot; never waits for the network, and fetches nothing.

        Args:
            limit: zero or less gives an empty list. ``session_settings`` do not count here.

        Raises:
            SessionClosed: the session was closed.
            InvalidArgument: ``limit`` is no whole number.
            JournalError: the journal cannot be read.
        """
        engine = await self._ready()
        limit = _limit(limit)
        if limit is not None and limit <= 0:
            return []
        return await engine.journal.read_aside(
            lambda conn: item_rows.entries(conn, self.session_id, limit)
        )

    def changes(self, seen: Iterable[Entry] | None = None) -> Changes:
        """Follow this session: ``async for change in session.changes()``, without polling. It tells
        what tasks, threads and processes on this journal write, what other devices have written
        once it is here, and what the server acknowledges; it ends when the session is closed.

        Carry each `Change` out in turn on a list that holds ``seen``, and the list is what
        `entries` gives at some moment since. A slow consumer is told of several changes as one,
        and holds nothing up. See `Changes`.

        Args:
            seen: what the caller shows already (a result of `entries`; empty for nothing): the
                first changes bring it up to date. None: from here on. What is added after this call
                is told, and what goes or is acknowledged after the first step of the iteration.

        Raises:
            SessionClosed: the session was closed.
            JournalError: (in the iteration) the journal cannot be read. It may be gone on with.
        """
        self._check_open()
        engine = self._engine
        if seen is not None:
            return Changes(engine, self.session_id, self._ready, ChangeCursor.of(seen))
        file, upto = engine.tail_cache.file, None
        if engine.journal.is_open:
            upto = engine.journal.outbox.newest_seq_blocking()
        return Changes(engine, self.session_id, self._ready, ChangeCursor.since(file, upto))

    async def search(self, query: str, limit: int = 20) -> list[Entry]:
        """Items that contain every word of ``query``, whatever the case; latest first. Local: works
        offline. With the index it costs what it finds; without one, or where the words are too
        short for it, a pass over the session.

        Args:
            query: words in any script, with spaces between them; each may stand anywhere in the
                text, inside a longer word too.
            limit: the most that is found; zero or less finds nothing.

        Raises:
            InvalidArgument: ``query`` has no word, or ``limit`` is no whole number.
            SessionClosed: the session was closed.
            JournalError: the journal cannot be read.
        """
        engine = await self._ready()
        words, most = search.words(query), _limit(limit) or 0
        return await search.look_up(engine.journal, self.session_id, words, most)

    async def recall(self, query: str, limit: int = 10) -> Recall:
        """Items of this session that the server finds nearest in meaning, best first; what `search`
        finds where the server cannot be asked, or has not got the text (``content="none"``).
        ``source`` says which.

        It waits for the server at most ``request_timeout``, and not while the server is known to be
        out of reach. What the server finds and this journal does not hold is left out.

        Args:
            query: what it shall be near to.
            limit: the most that is found; zero or less finds nothing.

        Raises:
            InvalidArgument: ``query`` has no word, or ``limit`` is no whole number.
            SessionClosed: the session was closed.
            JournalError: the journal cannot be read.
        """
        engine = await self._ready()
        words, most = search.words(query), _limit(limit) or 0
        if self._private or most <= 0:
            found = await search.look_up(engine.journal, self.session_id, words, most)
            return Recall(found, "local")
        return await network_calls.recall(engine, self.session_id, query, words, most)

    async def parked(self) -> list[Parked]:
        """Operations that the server refuses for good, oldest first, each with its error.

        Raises:
            SessionClosed: the session was closed.
            JournalError: the journal cannot be read.
        """
        engine = await self._ready()
        return await engine.journal.parked.all(self.session_id)

    async def retry_parked(self, dots: Sequence[tuple[str, int]] | None = None) -> int:
        """Put parked operations (all, or those named by their dots) back in the queue; how many. On
        return that is durable; the background sends them, under the ids that they had. Those that
        are not parked (any more) are passed over.

        Raises:
            InvalidArgument: what was passed names no operation.
            SessionClosed: the session was closed.
            JournalError: the journal cannot be written; nothing is put back.
        """
        engine = await self._ready()
        named = None if dots is None else _dots(dots)
        moved = await engine.journal.parked.retry(self.session_id, named)
        self._wrote()
        return moved

    async def drop_parked(self, *dots: tuple[str, int]) -> int:
        """Give up the parked appends named by their dots; how many there were.

        A dropped append leaves this history as well: no other replica will ever show it. Where the
        server holds it all the same, because an earlier answer was lost, it comes back from there,
        since others have it. A parked pop or clear cannot be dropped, because what it removed is
        gone here: retry it. Dropping cannot be undone, and is durable on return; if cancelled, all
        were dropped or none.

        Raises:
            InvalidArgument: none was named, or what was passed names no operation.
            SessionClosed: the session was closed.
            JournalError: the journal cannot be written; nothing is dropped.
        """
        if not dots:
            raise InvalidArgument("name what to drop by the dots of parked(): nothing was dropped")
        engine = await self._ready()
        named = _dots(dots)
        dropped = await engine.journal.parked.drop(self.session_id, named)
        self._wrote()
        return dropped

    # -- opening and closing ---------------------------------------------------------------------

    async def close(self) -> None:
        """Close the session. Idempotent, and it always finishes: if cancelled, no task, thread or
        file of it is left before the cancellation goes on.

        Waits at most ``close_timeout`` for unsent operations to leave, and not at all while the
        server is out of reach; the rest stays in the journal for the next time. Raises nothing for
        the server's sake.
        """
        if self._closed:
            return
        self._closed = True
        self._engine.news.wake(self.session_id)
        try:
            if self._spec is not None:
                await network_calls.drain(self._engine, [self.session_id])
        finally:
            self._leave()
            if self._owns_share:
                await self._engine.release(self._spec)

    async def __aenter__(self) -> CachedSession:
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
        if getattr(self, "_closed", True):
            return
        if not self._owns_share:
            self._leave()
        else:
            warnings.warn(
                f"{self!r} was never closed; use 'async with' or await close()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def _leave(self) -> None:
        if self._following:
            self._following = False
            self._engine.unfollow(self.session_id)

    def _check_open(self) -> None:
        if self._closed or self._is_engine_closed():
            raise SessionClosed(
                f"the session {self.session_id!r} was closed; make a new CachedSession"
            )

    async def _ready(self) -> Engine:
        """The engine, its journal open and its replicator alive."""
        self._check_open()
        engine = self._engine
        if not engine.journal.is_open:
            await engine.open()
        if self._spec is not None:
            self._attend()
        return engine

    def _attend(self) -> None:
        self._engine.loop_host.keep()
        if not self._following:
            self._following = True
            self._engine.follow(self.session_id)

    def _wrote(self) -> None:
        self._engine.news.wake(self.session_id)
        if self._spec is not None:
            self._engine.wrote()
            self._engine.touch(self.session_id)


def _check(
    session_id: object, pop: object, content: object, hydrate: object, options: object
) -> None:
    if not isinstance(session_id, str) or not session_id:
        raise InvalidArgument(
            f"session_id={session_id!r} must be a string that is not empty: it names the history"
        )
    if pop not in ("local", "confirmed"):
        raise InvalidArgument(f"pop={pop!r} is not known; use 'local' or 'confirmed'")
    if content not in ("text", "none"):
        raise InvalidArgument(f"content={content!r} is not known; use 'text' or 'none'")
    if not isinstance(hydrate, bool):
        raise InvalidArgument(f"hydrate={hydrate!r} must be True or False")
    if not isinstance(options, SyncOptions):
        raise InvalidArgument(f"options={options!r} must be a SyncOptions")


def _settings(settings: Any) -> Any:
    """Settings as the SDK's ``Runner`` wants them: it takes a dict only from a caller, and asks a
    session for an object. Where there is no SDK, a dict does."""
    if not isinstance(settings, dict):
        return settings
    try:
        from agents import SessionSettings  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        return settings
    try:
        return SessionSettings(**settings)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"session_settings={settings!r} make no SessionSettings: {error}; "
            "use agents.SessionSettings, or a dict such as {'limit': 20}"
        ) from error


def _limit(limit: object) -> int | None:
    """A limit as the journal can take it.

    Raises:
        InvalidArgument: it is no whole number.
    """
    if limit is None:
        return None
    if not isinstance(limit, int):
        raise InvalidArgument(f"limit={limit!r} must be a whole number or None")
    return min(int(limit), MOST_ITEMS)


def _place(entry: object) -> tuple[Dot, int]:
    if not isinstance(entry, Entry):
        raise InvalidArgument(f"{entry!r:.80} is no Entry; pass what entries() or search() gave")
    return Dot(entry.writer, entry.counter), entry.index


def _dots(dots: Iterable[Any]) -> list[Dot]:
    """Dots as their caller named them.

    Raises:
        InvalidArgument: one of them is none.
    """
    found = []
    for dot in dots:
        match dot:
            case (str() as writer, int() as counter):
                found.append(Dot(writer, counter))
            case _:
                raise InvalidArgument(
                    f"{dot!r} names no operation; pass the dot of a parked one: (writer, counter)"
                )
    return found


def _settings_limit(settings: Any) -> int | None:
    """The limit of SDK settings: an object, a dict, or nothing."""
    limit = (
        settings.get("limit") if isinstance(settings, dict) else getattr(settings, "limit", None)
    )
    return limit if isinstance(limit, int) else None
