"""The history of each session: session calls append, remove and read its items. Callers encode
the items that they append. The module has two caches, which are valid for one version of the file:
the latest items of the sessions in use, and the state of a session after the last write.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from cached_session.history import windows
from cached_session.history.ops import Dot, Mark, TurnKey
from cached_session.history.turns import TurnChoice
from cached_session.journal import get_items, search
from cached_session.journal.connections import Connections
from cached_session.journal.quota import Quota
from cached_session.journal.readers import Fetch, Readers
from cached_session.journal.sqlite.codec import array_of
from cached_session.journal.sqlite.tracked_connection import Version
from cached_session.journal.tables import change_cursor, entry_rows, item_rows, search_index, writes
from cached_session.journal.tables.change_cursor import ChangeCursor
from cached_session.journal.tables.outbox import newest
from cached_session.journal.tables.sessions import revision_of, stored_id
from cached_session.journal.tables.writes import NEW_TURN, Author, LastWrite, Popped, Written
from cached_session.journal.tail_cache import Tail, TailCache
from cached_session.journal.writer import Writer
from cached_session.models import Change, Entry, Turn
from cached_session.options import Window

__all__ = ["History"]

log = logging.getLogger("cached_session.journal")


class History:
    """The items of a journal's sessions. Safe to use from any thread and any event loop."""

    def __init__(
        self, connections: Connections, writer: Writer, readers: Readers, quota: Quota
    ) -> None:
        self._connections = connections
        self._writer = writer
        self._readers = readers
        self.quota = quota
        self._last_write = LastWrite()
        self._tail_cache = TailCache()
        self.beginning: int | None = None
        """The `seq` of the last operation before this process opened the journal; None before
        this process opens it. All operations with a higher `seq` were written or fetched by this
        process, or by another process after this process opened the journal."""

    def forget(self) -> None:
        """Clear the caches, because another file has replaced the journal."""
        self._tail_cache.forget()
        self._last_write.forget()
        self.quota.forget()

    # -- writing ---------------------------------------------------------------------------------

    async def append(
        self,
        author: Author,
        session_id: str,
        encoded: Sequence[tuple[str, int]],
        *,
        private: bool,
        turn: TurnChoice = NEW_TURN,
        limited: bool = False,
        removed: Sequence[tuple[Dot, int]] = (),
        stored: Callable[[TurnKey], None] | None = None,
    ) -> TurnKey | None:
        """Append a batch as one operation, and pop the items ``removed`` in the same transaction.

        Return the turn of the append. Return None, and change nothing, if the batch is ``limited``
        and the quota does not admit it. Call ``stored`` with the turn after the commit, also if the
        caller is cancelled.
        """
        written = await self._writer.write_reported(
            partial(self._appended, encoded, stored),
            append_within_quota,
            self.quota if limited else None,
            self._last_write,
            author,
            session_id,
            encoded,
            private=private,
            choice=turn,
            removed=removed,
        )
        return None if written is None else written.turn

    def _appended(
        self,
        encoded: Sequence[tuple[str, int]],
        stored: Callable[[TurnKey], None] | None,
        written: Written | None,
    ) -> None:
        if written is None:
            return
        self._last_write.keep(written)
        self.cache_append(written, encoded)
        if stored is not None and written.turn is not None:
            stored(written.turn)

    def cache_append(self, written: Written, encoded: Sequence[tuple[str, int]]) -> None:
        """Add a committed batch to the cached tail of its session; drop the tail if the batch is
        not the last of the history."""
        if written.is_last:
            self._tail_cache.appended(
                written.session_id, written.revision, written.version, encoded
            )
        else:
            self._tail_cache.drop(written.session_id)

    async def pop(self, author: Author, session_id: str) -> Popped | None:
        """Pop the latest item; return None if the session has no item."""
        popped = await self._writer.write(writes.pop, author, session_id, self._last_write)
        if popped is None:
            return None
        written = popped.written
        self._last_write.keep(written)
        if popped.was_last:
            self._tail_cache.popped(session_id, written.revision, written.version)
        return popped

    async def remove(
        self, author: Author, session_id: str, removed: Sequence[tuple[Dot, int]]
    ) -> int:
        """Pop each of these items that is visible; return the number of popped items."""
        return await self._writer.write(writes.remove, author, session_id, removed)

    async def mark(self, author: Author, session_id: str, mark: Mark) -> None:
        """Write a mark: see `tables.marks`.

        Raises:
            ValueError: the mark is not valid, or too large.
        """
        await self._writer.write(writes.write_mark, author, session_id, mark)

    async def clear(self, author: Author, session_id: str) -> None:
        """Remove all items that this journal has applied to a session."""
        await self._writer.write(writes.clear, author, session_id)

    # -- reading items ---------------------------------------------------------------------------

    async def items(self, session_id: str, limit: int | None) -> list[Any]:
        """Return the latest ``limit`` items (None: all), oldest first, as fresh objects.

        The result is one snapshot: a concurrent write is in it entirely or not at all.
        """
        cache = self._tail_cache
        # Read the version before the tail. A later commit then makes the cached version too old,
        # and the tail is read again. In the other order, an old tail could have a new version.
        file, version, tail = cache.file, self._connections.version(), cache.get(session_id)
        if tail is not None and (version is None or version != tail.version):
            tail = await self._still_valid(session_id, version)
        if tail is not None:
            texts = tail.latest(limit)
            if texts is not None:
                items: list[Any] = orjson.loads(array_of(texts))
                return items
            arrays = tail.arrays(limit)
            if arrays is not None:
                return await get_items.decode_blocks(self._readers, *arrays)
        items, fresh = await get_items.read_items(self._readers, session_id, limit, file, version)
        if fresh is not None:
            cache.put(session_id, fresh)
        return items

    async def _still_valid(self, session_id: str, version: Version | None) -> Tail | None:
        """Return the cached tail if no commit after its version changed this session."""
        tail = await self._readers.read(_unchanged, self._tail_cache, session_id)
        if tail is not None and version is not None:
            self._tail_cache.put(session_id, replace(tail, version=version))
        return tail

    @asynccontextmanager
    async def stream(self, session_id: str) -> AsyncIterator[Fetch]:
        """Read the items of a session, oldest first, in slices of one snapshot.

        The context manager yields a function ``fetch``. ``await fetch(most)`` returns the
        (payload, codec) rows of the items of the next ``most`` operations, and an empty list at the
        end.
        """
        async with self._readers.rows(item_rows.EXPORT, (stored_id(session_id),)) as fetch:

            async def fetch_items(most: int) -> list[tuple[bytes, int]]:
                items: list[tuple[bytes, int]] = []
                while not items and (rows := await fetch(most)):
                    items = [item for row in rows for item in item_rows.rows_of(*row)]
                return items

            yield fetch_items

    # -- reading entries -------------------------------------------------------------------------

    async def entries(
        self, session_id: str, limit: int | None, before: Entry | None = None
    ) -> list[Entry]:
        """Return the latest ``limit`` entries (None: all), oldest first; with ``before``, of those
        that precede this entry."""
        return await self._readers.read_aside(entry_rows.entries, session_id, limit, before)

    async def windowed(self, session_id: str, window: Window) -> list[Any]:
        """Return the latest items within a window, oldest first. The read runs in a thread."""
        return await self._readers.read_aside(_windowed, session_id, window)

    async def turns(self, session_id: str, limit: int | None) -> list[Turn]:
        """Return the latest ``limit`` turns (None: all), oldest first."""
        return await self._readers.read_aside(entry_rows.turns, session_id, limit)

    async def entries_at(
        self, session_id: str, positions: Iterable[tuple[str, int, int]]
    ) -> list[Entry]:
        """Return the visible entries at these (writer, counter, index) positions, in the given
        order."""
        return await self._readers.read_aside(entry_rows.entries_at, session_id, positions)

    async def search(self, session_id: str, words: list[str], limit: int) -> list[Entry]:
        """Return the latest entries whose text contains every word, latest first.

        If the index is damaged, it is no longer used, and the session is scanned.

        Raises:
            JournalError: the journal cannot be read, or the damaged index cannot be switched off.
        """
        try:
            return await self._readers.read_aside(search.find, session_id, words, limit)
        except search_index.Spoiled as error:
            log.warning(search_index.GAVE_UP, error)
            await self._writer.write(search_index.give_up)
            return await self._readers.read_aside(search.find, session_id, words, limit)

    # -- changes ---------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Open the journal, and record its newest operation in `beginning`."""
        await self._writer.maintain(self._record_beginning)

    def begin_blocking(self) -> None:
        """Open the journal and record its newest operation, on a thread that runs no event loop."""
        self._writer.open_blocking()
        self._readers.read_blocking(self._record_beginning)

    def _record_beginning(self, conn: sqlite3.Connection) -> None:
        if self.beginning is None:
            self.beginning = newest(conn)

    def cursor_now(self) -> ChangeCursor:
        """Return a cursor behind the newest operation. The journal must be open."""
        file = self._tail_cache.file
        return ChangeCursor.since(file, self._readers.read_blocking(newest))

    def cursor_before_opening(self) -> ChangeCursor:
        """Return a cursor without `ChangeCursor.upto`, for a journal that is not open yet."""
        return ChangeCursor.since(self._tail_cache.file, None)

    async def changes_after(
        self, session_id: str, cursor: ChangeCursor, writer: str
    ) -> tuple[ChangeCursor, list[Change]]:
        """Return the new cursor of a follower, and the changes of the session since ``cursor``."""
        return await self._readers.read_aside(
            _advance, session_id, cursor, self._tail_cache, writer
        )


def append_within_quota(
    conn: sqlite3.Connection,
    quota: Quota | None,
    last: LastWrite,
    author: Author,
    session_id: str,
    encoded: Sequence[tuple[str, int]],
    *,
    private: bool,
    choice: TurnChoice,
    removed: Sequence[tuple[Dot, int]],
) -> Written | None:
    """Pop items and append a batch in one transaction. Return None, and change nothing, if the
    quota does not admit the batch."""
    if quota is not None and not quota.admits(conn, encoded):
        return None
    writes.remove(conn, author, session_id, removed)
    return writes.append(
        conn, author, session_id, encoded, private=private, choice=choice, last=last
    )


def _windowed(conn: sqlite3.Connection, session_id: str, window: Window) -> list[Any]:
    with item_rows.snapshot(conn):
        return windows.fit(
            entry_rows.turns_backwards(conn, session_id),
            most_items=window.items,
            most_turns=window.turns,
            most_tokens=window.tokens,
            count=window.count,
        )


def _unchanged(conn: sqlite3.Connection, cache: TailCache, session_id: str) -> Tail | None:
    # Get the tail again, because the connection may now belong to another file.
    tail = cache.get(session_id)
    if tail is None or tail.revision != revision_of(conn, session_id):
        return None
    return tail


def _advance(
    conn: sqlite3.Connection,
    session_id: str,
    cursor: ChangeCursor,
    cache: TailCache,
    writer: str,
) -> tuple[ChangeCursor, list[Change]]:
    return change_cursor.advance(conn, session_id, cursor, cache.file, writer)
