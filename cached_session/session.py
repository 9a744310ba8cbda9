"""`CachedSession`: one conversation of an agent."""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from cached_session.engine import importer, network_calls
from cached_session.engine.changes import Changes
from cached_session.engine.engine import Engine
from cached_session.engine.importer import Source
from cached_session.engine.open_turns import OpenTurns
from cached_session.engine.sdk_compaction import CompactionHooks, Snapshot
from cached_session.engine.session_config import (
    SessionConfig,
    check_options_type,
    checked_items,
    dots_of,
    items_limit,
    position_of,
    sdk_settings,
    settings_limit,
)
from cached_session.errors import InvalidArgument, SessionClosed
from cached_session.history.ops import TurnKey
from cached_session.history.session_name import quoted_name
from cached_session.history.tool_calls import read_batch
from cached_session.journal import search
from cached_session.journal.sqlite.codec import decode_rows, encode_items
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
    Turn,
)
from cached_session.options import SyncOptions
from cached_session.paths import journal_path
from cached_session.remote.connect import RemoteSpec
from cached_session.replication.audit import AuditReport
from cached_session.runtime import Runtime

if TYPE_CHECKING:
    from agents import SessionSettings, TResponseInputItem
    from dakera import AsyncDakeraClient

__all__ = ["CachedSession", "import_source", "name_of", "open_engine", "session_over"]

DEFAULTS = SyncOptions()


class CachedSession:
    """A conversation in a local journal that is synced with a Dakera server in the background.

    The class implements the Agents SDK's ``Session`` protocol: pass a session to ``Runner.run``.
    Reads and writes use the local journal only, so their cost does not depend on the server. Making
    a session is cheap and does no I/O; the first awaited call opens the journal.

    A session is safe to use from several tasks, event loops and threads. Objects over the same
    journal in one process share its connections and its background task. Close each session, or use
    ``async with``.

    All times are seconds. A cancelled call leaves the journal usable. A cancelled read changes
    nothing. A cancelled write is stored entirely or not at all: the call waits for the outcome
    before it raises the cancellation. A cancelled call that waits for the server does not undo the
    work that it has done so far.
    """

    session_id: str
    key_prefix: str
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
        key_prefix: str = "",
        runtime: Runtime | None = None,
    ) -> None:
        """Make a session that uses an existing client, or no server.

        See `from_url` to pass a server's address instead.

        Args:
            session_id: name of the conversation. Devices that use the same id and the same
                ``key_prefix`` share one history.
            client: an ``AsyncDakeraClient``, which the caller owns and closes; None for local-only
                use.
            journal: the path of the SQLite file, which all sessions of a device share; None for the
                default path in the user's data directory. With ``":memory:"``, nothing is stored on
                disk.
            session_settings: as in the SDK: ``limit`` is the default limit of `get_items`.
            pop: ``"confirmed"`` claims an item on the server before `pop_item` returns it.
            content: ``"none"`` keeps readable text out of the server's index.
            hydrate: whether the first read of an unknown session waits for the server's history.
            options: intervals, limits, timeouts, durability. If this process already has the
                journal open, the options of the first object are used, and a warning is logged.
            on_progress: called after each page of a first hydration.
            key_prefix: the application of the session: the same id under two prefixes is two
                sessions, with two histories. At most 200 characters; empty by default.
            runtime: clock, randomness and ids; for tests.

        Raises:
            InvalidArgument: an argument is wrong.
        """
        self._closed = True  # `__del__` does not warn if this constructor fails
        config = SessionConfig(
            session_id,
            RemoteSpec.make(None, None, client),
            sdk_settings(session_settings),
            pop,
            content,
            hydrate,
            on_progress,
            key_prefix,
        )
        self._set_up(config, _acquire(config, journal, options, runtime))

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
        key_prefix: str = "",
        move: bool = False,
        runtime: Runtime | None = None,
    ) -> CachedSession:
        """Make a session that uses the Dakera server at ``url``.

        The constructor describes the other arguments. The background task connects when it first
        needs the server; the session owns the connection.

        A journal belongs to one server. If it syncs with a server at another address, the first
        call raises `InvalidArgument` and sends nothing. With ``move=True``, the journal moves:
        everything in it is sent to this server, once the server answers.

        Raises:
            InvalidArgument: ``url`` is not an http or https address, or another argument is wrong.
        """
        if url is None:
            raise InvalidArgument("url=None is not the address of a server; use http://host:port")
        config = SessionConfig(
            session_id,
            RemoteSpec.make(url, api_key, None, move=move),
            sdk_settings(session_settings),
            pop,
            content,
            hydrate,
            on_progress,
            key_prefix,
        )
        session = cls.__new__(cls)
        session._set_up(config, _acquire(config, journal, options, runtime))
        return session

    def _set_up(
        self,
        config: SessionConfig,
        engine: Engine,
        *,
        is_cache_closed: Callable[[], bool] | None = None,
    ) -> None:
        """Set the attributes of a new session.

        If ``is_cache_closed`` is given, the session belongs to a cache, uses the cache's share of
        the engine, and is closed together with the cache.
        """
        self.session_id = config.session_id
        self.key_prefix = config.key_prefix
        self._name = config.name
        self.session_settings = config.settings
        self._spec = config.remote
        self._confirmed = config.pop == "confirmed"
        self._private = config.content == "none"
        self._hydrate = config.hydrate
        self._on_progress = config.on_progress
        self._following = False
        self._owns_share = is_cache_closed is None
        self._is_cache_closed = is_cache_closed
        self._engine = engine
        self._turns = OpenTurns((engine.number, config.name))
        self._compaction = CompactionHooks()
        self._closed = False

    def __repr__(self) -> str:
        server = self._spec.server if self._spec else "local"
        prefix = f"key_prefix={self.key_prefix!r}, " if self.key_prefix else ""
        return (
            f"CachedSession({self.session_id!r}, {prefix}journal={self._engine.path!r}, "
            f"server={server!r})"
        )

    # -- the Session protocol --------------------------------------------------------------------

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Return the latest ``limit`` items in chronological order; without a limit, all items.

        The call does not wait for the network, with one exception: the first read of a session that
        this journal does not know waits for the server's history, at most ``hydrate_timeout``. The
        result is one snapshot of new objects: changing these objects does not change the journal.

        Args:
            limit: overrides ``session_settings.limit``; zero or less returns an empty list.

        Raises:
            SessionClosed: the session was closed.
            InvalidArgument: ``limit`` is not an integer, or the journal syncs with another server.
            JournalError: the journal cannot be read.
        """
        # This inlines `_ready`: another coroutine costs a twentieth of a read of 20 items.
        self._check_open()
        engine = self._engine
        if not engine.journal.is_open:
            await engine.open()
        limit = items_limit(settings_limit(self.session_settings) if limit is None else limit)
        if limit is not None and limit <= 0:
            return []
        if self._spec is not None:
            if engine.accepted.url != self._spec.server:
                await engine.accepted.check(self._spec)
            self._attend()
            if self._hydrate:
                await engine.hydration.wait(self._name, limit, self._on_progress)
            engine.touch(self._name)
        return await engine.journal.history.items(self._name, limit)

    async def add_items(self, items: Sequence[TResponseInputItem]) -> None:
        """Append a batch of items.

        On return the batch is durable in the journal, and visible to every later read of every
        session over this journal. A batch is one operation: it is contiguous in every replica's
        history, and each replica shows all of it or nothing. If cancelled, the batch is stored
        entirely or not at all.

        The batch becomes part of a turn, whose batches are contiguous too. The first rule that
        applies decides: inside `turn`, it joins the turn of that block. If it answers tool calls,
        it joins the turn of the latest of these calls in the history, whatever the device that
        made it. If it contains no message of a user, the system or a developer, it joins the turn
        that this object and task have open: a turn is open until a batch ends with an answer of
        the assistant and no call is unanswered. Otherwise it opens a turn, at the end.

        Raises:
            InvalidArgument: ``items`` is not a sequence of JSON objects, or an item cannot be
                encoded as JSON; nothing of the batch is stored.
            SessionClosed: the session was closed (also for an empty batch).
            JournalFull: the disk is full, or the quota of unsent work (`SyncOptions`) was used up
                and nothing was acknowledged in time; nothing of the batch is stored.
            JournalError: the journal cannot be written; nothing of the batch is stored.
        """
        self._check_open()
        batch = checked_items(items)
        if batch:
            await self._append(batch)

    async def _append(
        self, batch: Sequence[TResponseInputItem], replaced: Sequence[Entry] = ()
    ) -> None:
        """Append a batch to the turn that it joins, and pop the items that it replaces."""
        encoded = encode_items(batch)
        engine = await self._ready()
        async with self._turns.append(read_batch(batch), replaced) as joined:
            await engine.append(
                self._name,
                encoded,
                joined,
                private=self._private,
                is_sent=self._spec is not None,
                removed=[position_of(entry) for entry in replaced],
            )
        self._wrote()

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Make one turn of everything that is appended to the session inside ``async with``.

        The items are contiguous in the history of every replica, even if other devices write
        meanwhile. Without this block the rules of `add_items` apply, which suffice for the
        frameworks' own runs. Use the block where the items do not show that they belong together,
        such as two messages of a user.

        - The block applies to appends of the task that enters it and of the tasks and threads that
          it starts with a copy of its context, over any object of the session on this journal. It
          ends for all of them at once. Appends of other tasks are not affected.
        - The first append opens the turn; if it answers tool calls, it joins the turn of these
          calls instead. Concurrent appends end in the same turn, in the order of their commits.
        - A block inside another one of the same session has no effect: the outer one decides.
        - The block reads and writes nothing itself. Each append is durable when it returns, and
          may be sent before the block ends. If the block raises or is cancelled, the items that
          were appended stay.
        - A pop or a clear inside the block does not end the turn. Items that are appended after it
          join the turn.

        Raises:
            SessionClosed: the session was closed.
        """
        self._check_open()
        return self._turns.block()

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove and return the latest item; return None if the session has no items.

        With ``pop="local"`` the item is removed from the journal on return, and from other devices
        when they sync. Two tasks or processes on one journal never get the same item. With
        ``pop="confirmed"`` the server must confirm the pop first, and two devices never get the
        same item as long as the server's delete is atomic.

        If cancelled, nothing is returned, and the item is either still stored or durably removed.
        In confirmed mode an unfinished claim is resolved later, as after a crash.

        Raises:
            PopUnconfirmed: confirmed mode, and the server did not answer, or its confirmation could
                not be written to the journal; nothing is returned.
            Unauthorized, SyncError: confirmed mode, and the server refuses; nothing is popped.
            SessionClosed: the session was closed.
            JournalError: the journal cannot be written; nothing is popped.
        """
        engine = await self._ready()
        turn: TurnKey | None = None
        if self._confirmed:
            row = await network_calls.pop_confirmed(engine, self._name)
        else:
            popped = await engine.journal.history.pop(engine.author(), self._name)
            row, turn = (None, None) if popped is None else (popped.row, popped.turn)
        if row is None:
            return None
        self._wrote()
        item: TResponseInputItem = decode_rows([row])[0]
        if turn is not None:
            self._turns.popped(turn, read_batch([item]))
        return item

    async def clear_session(self) -> None:
        """Remove all items of the session that this journal has.

        On return the items are durably removed from this journal. Other devices remove them when
        they sync. Items of other devices that this journal has not received yet stay. If cancelled,
        all items are removed or no item is removed.

        Raises:
            SessionClosed: the session was closed.
            JournalError: the journal cannot be written; nothing is removed.
        """
        engine = await self._ready()
        await engine.journal.history.clear(engine.author(), self._name)
        self._turns.cleared()
        self._wrote()

    async def replace_items(
        self, entries: Sequence[Entry], items: Sequence[TResponseInputItem] = ()
    ) -> None:
        """Remove the items of these `entries`, anywhere in the history, and append a batch.

        One transaction removes and appends: readers see the whole change or nothing. Each removal
        is recorded and merged as a pop of that item: an item that another device has removed too is
        removed once, and items added in between stay. The new items join a turn, as in `add_items`,
        with one difference: if all removed items are of the turn that this object and task joined
        last, the new ones join this turn. With ``pop="confirmed"`` no confirmation by the server is
        needed, because no item is returned. If cancelled, the whole change is stored or nothing.

        Args:
            entries: the entries to remove; entries that are already removed are ignored.
            items: the items to append; none by default.

        Raises:
            InvalidArgument: an element is not an entry, or an item cannot be encoded as JSON;
                nothing changes.
            SessionClosed, JournalFull, JournalError: as `add_items`; nothing changes.
        """
        replaced = list(entries)
        removed = [position_of(entry) for entry in replaced]
        batch = checked_items(items)
        if batch or not removed:
            self._check_open()
            if batch:
                await self._append(batch, replaced)
            return
        engine = await self._ready()
        await engine.journal.history.remove(engine.author(), self._name, removed)
        self._turns.removed(replaced)
        self._wrote()

    # The Agents SDK looks up the next three methods by name when it compacts a history.

    async def _get_compaction_snapshot(
        self, limit: int, *, prune_prefix: Callable[[Any], bool] | None = None
    ) -> Snapshot | None:
        """Return the latest ``limit`` items with a function that replaces a suffix of them: see
        `CompactionHooks.snapshot`. A subclass may convert items, so it must define its own hook."""
        if type(self) is not CachedSession:
            return None
        return await self._compaction.snapshot(self, limit, self._oldest_items, prune_prefix)

    async def _read_compaction_items(self, limit: int | None) -> tuple[list[Any], bool]:
        """Return the items that a compaction on request summarises: see `CompactionHooks.read`."""
        default = settings_limit(self.session_settings)
        return await self._compaction.read(self, limit, default)

    async def _atomic_replace_items(self, items: list[Any]) -> bool:
        """Replace the items that a compaction has read, in one transaction."""
        if type(self) is not CachedSession:
            return False
        await self._compaction.replace_all(self, items)
        return True

    async def _oldest_items(self) -> list[Any]:
        """Return the oldest item of the session; an empty list if it has none."""
        engine = await self._ready()
        async with engine.journal.history.stream(self._name) as fetch:
            return decode_rows(await fetch(1))

    async def import_items(
        self,
        items: Iterable[TResponseInputItem] | AsyncIterable[TResponseInputItem],
        *,
        source: str,
        on_progress: Callable[[ImportProgress], None] | None = None,
    ) -> ImportReport:
        """Append the items of another store that earlier calls have not appended.

        The items are written in batches, each in a transaction that also records the progress of
        the import. So a repeated call with the same source, after a crash or because the source has
        grown, adds only the new items. If the call is cancelled, only whole batches are stored.

        Args:
            items: all items of the source, from its beginning, in order.
            source: name of the source, such as ``"redis:user-123"``. Use one name in all calls.
            on_progress: called after each batch.

        Raises:
            InvalidArgument: an item cannot be encoded as JSON, or the source no longer begins with
                the items that were imported from it. Earlier batches are stored.
            SessionClosed, JournalError: as `add_items`.
        """
        if not source:
            raise InvalidArgument(f"source={source!r} must be a name for the origin of the items")
        engine = await self._ready()
        return await importer.import_batches(
            engine,
            import_source(self, f"items:{source}", is_named=True),
            importer.encode_batches(items),
            on_progress,
        )

    # -- sync ------------------------------------------------------------------------------------

    async def sync(self, timeout: float | None = None) -> SyncReport:
        """Push and pull until both are done. Retry while the server is out of reach.

        On return everything written before the call is on the server, except parked operations, and
        everything that the server listed is in the journal. If cancelled, the operations that were
        sent and fetched so far stay stored, and the rest continues in the background.

        Args:
            timeout: seconds; None for no limit.

        Raises:
            SyncTimeout: the timeout expired; ``__cause__`` is the last error of the server, if
                there was one. The work continues in the background.
            Unauthorized: the server refuses the key or its scope.
            SyncError: there is no server.
            SessionClosed: the session was closed.
        """
        engine = await self._ready()
        return await network_calls.sync(engine, [self._name], timeout)

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until everything written so far is on the server.

        If cancelled, the background task continues to send.

        Args:
            timeout: seconds; None for no limit.

        Raises:
            SyncTimeout, Unauthorized, SessionClosed: as `sync`.
            SyncError: there is no server, or operations are parked.
        """
        engine = await self._ready()
        await network_calls.flush(engine, [self._name], timeout)

    def status(self) -> Status:
        """Return the status of the session, read from the journal.

        A closed session has a status, too.

        The method is not a coroutine: it opens the journal if necessary, and runs a few short
        queries on the calling thread. If another process has locked the file, opening takes at most
        ``busy_timeout``.

        Raises:
            JournalError: the journal cannot be opened or read.
        """
        closed = self._closed or bool(self._is_cache_closed and self._is_cache_closed())
        return self._engine.status(self._name, is_closed=closed)

    async def audit(self) -> AuditReport:
        """Compare the server with the journal and repair the differences.

        Memories that the server lost are stored again, operations that a pull missed are fetched,
        and memories of removed items are deleted. On return every memory that the server listed has
        been compared. The audit lists the whole session, so its duration grows with the history. If
        the call is cancelled, the repairs made so far remain.

        Raises:
            Unauthorized, SyncError: the request failed; a repeated call continues.
            SessionClosed: the session was closed.
            JournalError: the journal cannot be read or written; a repeated call continues.
        """
        engine = await self._ready()
        return await network_calls.audit(engine, self._name)

    # -- entries, changes, search, parked operations ---------------------------------------------

    async def entries(self, limit: int | None = None) -> list[Entry]:
        """Return the latest ``limit`` items (by default all) with their rank, run and sync state.

        The entries are in chronological order, and from one snapshot. The call never waits for the
        network and fetches nothing.

        Args:
            limit: zero or less returns an empty list. ``session_settings`` are not applied.

        Raises:
            SessionClosed: the session was closed.
            InvalidArgument: ``limit`` is not an integer.
            JournalError: the journal cannot be read.
        """
        engine = await self._ready()
        limit = items_limit(limit)
        if limit is not None and limit <= 0:
            return []
        return await engine.journal.history.entries(self._name, limit)

    async def turns(self, limit: int | None = None) -> list[Turn]:
        """Return the latest ``limit`` turns (by default all), oldest first, with their entries.

        A turn has at least one visible entry, and all its visible entries are in the result. The
        turns are from one snapshot. The call never waits for the network and fetches nothing. Its
        cost grows with the entries that it returns.

        Args:
            limit: zero or less returns an empty list.

        Raises:
            SessionClosed: the session was closed.
            InvalidArgument: ``limit`` is not an integer.
            JournalError: the journal cannot be read.
        """
        engine = await self._ready()
        limit = items_limit(limit)
        if limit is not None and limit <= 0:
            return []
        return await engine.journal.history.turns(self._name, limit)

    def changes(self, seen: Iterable[Entry] | None = None) -> Changes:
        """Follow this session: ``async for change in session.changes()``, without polling.

        The iterator reports writes of any task, thread or process to this journal, fetched writes
        of other devices, and acknowledgements of the server. It ends when the session is closed.
        See `Changes`.

        Apply each `Change` in turn to a list that starts as ``seen``. After each change the list
        equals a result of `entries` at some time after the call. A slow consumer gets several
        changes combined into one, and does not delay other consumers.

        Args:
            seen: the entries that the caller already has: a result of `entries`, or an empty list.
                The first changes bring this list up to date. With None, the iterator reports
                additions after this call, but removals and acknowledgements only after the first
                step of the iteration.

        Raises:
            SessionClosed: the session was closed.
            JournalError: (in the iteration) the journal cannot be read. The iteration can continue.
        """
        self._check_open()
        engine, history = self._engine, self._engine.journal.history
        if seen is not None:
            start = ChangeCursor.of(seen)
        elif engine.journal.is_open:
            start = history.cursor_now()
        else:
            start = history.cursor_before_opening()
        return Changes(engine, self._name, self._ready, start)

    async def search(self, query: str, limit: int = 20) -> list[Entry]:
        """Return items that contain every word of ``query``, ignoring case, latest first.

        The search reads only the journal, so it works offline. With the full-text index its cost
        depends on the number of matches. Without the index, or if the words are too short for the
        index, the search scans the session.

        Args:
            query: words in any script, separated by spaces. Each word may be anywhere in the text,
                also inside a longer word.
            limit: maximum number of items to return; zero or less returns an empty list.

        Raises:
            InvalidArgument: ``query`` has no word, or ``limit`` is not an integer.
            SessionClosed: the session was closed.
            JournalError: the journal cannot be read.
        """
        engine = await self._ready()
        words, most = search.words(query), items_limit(limit) or 0
        return await engine.journal.history.search(self._name, words, most)

    async def recall(self, query: str, limit: int = 10) -> Recall:
        """Return the items of this session that the server finds nearest in meaning, best first.

        If the server cannot recall, or does not have the text (``content="none"``), return the
        results of `search`. `Recall.source` is the origin of the results. The call waits for the
        server at most ``request_timeout``, and not while the server is known to be out of reach. An
        item that the server finds and this journal does not have is omitted.

        Args:
            query: a text of similar meaning.
            limit: maximum number of items to return; zero or less returns no items.

        Raises:
            InvalidArgument: ``query`` has no word, or ``limit`` is not an integer.
            SessionClosed: the session was closed.
            JournalError: the journal cannot be read.
        """
        engine = await self._ready()
        words, most = search.words(query), items_limit(limit) or 0
        if self._private or most <= 0:
            found = await engine.journal.history.search(self._name, words, most)
            return Recall(found, "local")
        return await network_calls.recall(engine, self._name, query, words, most)

    async def parked(self) -> list[Parked]:
        """Return the operations that the server refused permanently, oldest first, with the error.

        Raises:
            SessionClosed: the session was closed.
            JournalError: the journal cannot be read.
        """
        engine = await self._ready()
        found = await engine.journal.parked.all(self._name)
        return [replace(each, session_id=self.session_id) for each in found]

    async def retry_parked(self, dots: Sequence[tuple[str, int]] | None = None) -> int:
        """Put parked operations back into the outbox; return the number of these operations.

        On return the operations are durably queued. The background task sends them under the same
        ids as before. Operations that are not parked, or no longer parked, are ignored.

        Args:
            dots: the dots of the operations; None for all parked operations.

        Raises:
            InvalidArgument: an element is not a dot.
            SessionClosed: the session was closed.
            JournalError: the journal cannot be written; nothing is put back.
        """
        engine = await self._ready()
        named = None if dots is None else dots_of(dots)
        moved = await engine.journal.parked.retry(self._name, named)
        self._wrote()
        return moved

    async def drop_parked(self, *dots: tuple[str, int]) -> int:
        """Drop parked appends; return the number of dropped appends.

        A dropped append is removed from this history, too, because no other replica will show it.
        If the server has the append after all (an earlier answer was lost), the next pull adds it
        again, because other replicas have it. A parked pop or clear cannot be dropped, because its
        items are already removed from this journal: retry such an operation. Dropping cannot be
        undone, and is durable on return. If cancelled, all appends are dropped or no append is
        dropped.

        Args:
            dots: the dots of the appends.

        Raises:
            InvalidArgument: there is no dot, or an element is not a dot.
            SessionClosed: the session was closed.
            JournalError: the journal cannot be written; nothing is dropped.
        """
        if not dots:
            raise InvalidArgument("nothing was dropped: pass the dots of the operations to drop")
        engine = await self._ready()
        named = dots_of(dots)
        dropped = await engine.journal.parked.drop(self._name, named)
        self._wrote()
        return dropped

    # -- opening and closing ---------------------------------------------------------------------

    async def close(self) -> None:
        """Close the session. A repeated call has no effect.

        The call sends unsent operations for at most ``close_timeout``, and not while the server is
        out of reach. The rest stays in the journal and is sent after the next opening. Errors of
        the server are not raised. The call always finishes: if cancelled, it closes the session's
        tasks, threads and files before it raises the cancellation.
        """
        if self._closed:
            return
        self._closed = True
        self._engine.news.wake(self._name)
        try:
            if self._spec is not None:
                await network_calls.drain(self._engine, lambda name: name == self._name)
        finally:
            self._leave()
            if self._owns_share:
                await self._engine.release(self._spec)

    async def __aenter__(self) -> CachedSession:
        """Open the journal.

        Raises:
            JournalError: the journal cannot be opened. The session is closed.
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
            self._engine.unfollow(self._name)

    def _check_open(self) -> None:
        if self._closed or (self._is_cache_closed is not None and self._is_cache_closed()):
            raise SessionClosed(
                f"the session {quoted_name(self._name)} was closed; make a new CachedSession"
            )

    async def _ready(self) -> Engine:
        """Return the engine, with an open journal and a running replicator."""
        self._check_open()
        engine = self._engine
        if not engine.journal.is_open:
            await engine.open()
        if self._spec is not None:
            await engine.accepted.check(self._spec)
            self._attend()
        return engine

    def _attend(self) -> None:
        self._engine.loop_host.ensure_running()
        if not self._following:
            self._following = True
            self._engine.follow(self._name)

    def _wrote(self) -> None:
        self._engine.news.wake(self._name)
        if self._spec is not None:
            self._engine.wrote()
            self._engine.touch(self._name)


def _acquire(
    config: SessionConfig,
    journal: str | os.PathLike[str] | None,
    options: SyncOptions,
    runtime: Runtime | None,
) -> Engine:
    check_options_type(options)
    return Engine.acquire(journal_path(journal), config.remote, options, runtime or Runtime())


# For other modules of this package.


def session_over(
    engine: Engine, config: SessionConfig, *, is_closed: Callable[[], bool] = lambda: False
) -> CachedSession:
    """Return a session that uses the caller's share of an engine.

    ``is_closed`` returns True after the caller has released that share.
    """
    session = CachedSession.__new__(CachedSession)
    session._set_up(config, engine, is_cache_closed=is_closed)
    return session


async def open_engine(session: CachedSession) -> Engine:
    """Return the engine of a session, with an open journal and a running replicator.

    Raises:
        SessionClosed: the session was closed.
        JournalError: the journal cannot be opened.
    """
    return await session._ready()


def import_source(
    session: CachedSession, kind: str, *, is_named: bool = False, total: int | None = None
) -> Source:
    """Return the `Source` of an import into a session."""
    return Source(session._name, kind, session._private, is_named, total)


def name_of(session: CachedSession) -> str:
    """Return the name of a session, made of its key prefix and its id."""
    return session._name
