"""Import of another store's items in batches. One transaction stores a batch and the progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cached_session.engine.engine import Engine
from cached_session.errors import InvalidArgument, JournalError
from cached_session.history.session_name import quoted_name, split_name
from cached_session.journal.journal import shielded
from cached_session.journal.sqlite.codec import encode_item
from cached_session.journal.tables import import_marks
from cached_session.journal.tables.import_marks import NOTHING, Mark
from cached_session.models import ImportProgress, ImportReport

__all__ = [
    "BATCH_BYTES",
    "BATCH_ITEMS",
    "Row",
    "Source",
    "encode_batches",
    "import_batches",
    "read_batches",
]

BATCH_ITEMS = 200
"""Maximum number of items in one transaction: few enough for one request, and many enough to make
the commit's cost small for each item."""
BATCH_BYTES = 256 * 1024
"""Number of characters of JSON text after which a batch is complete. The last item of a batch may
exceed the limit."""

Row = tuple[str, int] | None
"""An item as the journal stores it (JSON text, codec); None for an unreadable item."""


async def read_batches(engine: Engine, rows: Iterator[Row]) -> AsyncIterator[list[Row]]:
    """Read batches in a thread, so that reading a file does not block the event loop."""
    while True:
        batch = await shielded(asyncio.ensure_future(engine.journal.offload(_take, rows)))
        if not batch:
            return
        yield batch


def _take(rows: Iterator[Row]) -> list[Row]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row[0]) if row is not None else 0
        if len(batch) >= BATCH_ITEMS or size >= BATCH_BYTES:
            break
    return batch


async def encode_batches(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[list[Row]]:
    """Encode items one by one and yield them in batches.

    Raises:
        InvalidArgument: an item cannot be encoded as JSON.
    """
    batch: list[Row] = []
    size = position = 0
    async for item in _each(items):
        row = encode_item(item, position)
        position += 1
        batch.append(row)
        size += len(row[0])
        if len(batch) >= BATCH_ITEMS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def _each(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


@dataclass(frozen=True)
class Source:
    """The source of an import, and the session that gets its items."""

    session: str
    """Name of the session that gets the items."""
    kind: str
    """Kind of the source, and the part of its name that does not change if the source is moved."""
    private: bool
    """True if no readable text of the items is sent to the server."""
    is_named: bool = False
    """True if `kind` alone identifies the source; False if the first item of the source is needed
    as well."""
    total: int | None = None
    """Number of items of the source, for progress reports; None if unknown."""


async def import_batches(
    engine: Engine,
    source: Source,
    batches: AsyncIterator[list[Row]],
    on_progress: Callable[[ImportProgress], None] | None = None,
) -> ImportReport:
    """Append the items that earlier imports of the same source have not appended.

    If the call is cancelled, only whole batches are stored, and the next import resumes after the
    last stored batch.

    Raises:
        InvalidArgument: the source no longer begins with the items that were imported from it.
        JournalError: the journal cannot be written, or another import of this source is running.
    """
    running = _Import(engine, source)
    await running.find_named_mark()
    async for batch in batches:
        await running.add(batch)
        if on_progress is not None:
            on_progress(running.progress())
    return running.report()


class _Import:
    """One running import and its progress."""

    def __init__(self, engine: Engine, source: Source) -> None:
        self._engine = engine
        self._source = source
        self._name: str | None = None
        if source.is_named:
            self._name = import_marks.name_key(source.session, source.kind)
        self._named_key = ""
        """Key of the mark that is stored under the source's name; empty if there is no such
        mark."""
        self._key = ""
        """Key of the mark of this import; empty until the first item is read."""
        self._mark = NOTHING
        self._known = 0
        """Number of items that earlier imports have appended."""
        self._position = self._added = self._unreadable = 0
        self._first_unreadable: int | None = None
        self._chain = ""

    async def find_named_mark(self) -> None:
        """Read the mark that is stored under the source's name, if the source is named."""
        if self._name is not None:
            self._named_key, self._mark = await self._engine.journal.imports.mark_named(self._name)
            self._known = self._mark.count

    async def add(self, batch: list[Row]) -> None:
        """Append the new items of the next batch."""
        fresh: list[tuple[str, int]] = []
        for row in batch:
            if row is None:
                self._unreadable += 1
                if self._first_unreadable is None:
                    self._first_unreadable = self._position + self._unreadable
                continue
            if not self._key:
                await self._find_mark(row[0])
            self._position += 1
            self._chain = import_marks.chained(self._chain, row[0])
            if self._position > self._known:
                fresh.append(row)
            elif self._position == self._known and self._chain != self._mark.chain:
                raise self._changed()
        if fresh:
            await self._append(fresh)

    async def _find_mark(self, first: str) -> None:
        self._key = import_marks.mark_key(self._source.session, self._source.kind, first)
        if self._named_key not in ("", self._key):
            raise self._changed()
        self._mark = await self._engine.journal.imports.mark_at(self._key)
        self._known = self._mark.count

    async def _append(self, fresh: list[tuple[str, int]]) -> None:
        engine, session = self._engine, self._source.session
        after = Mark(self._position, self._chain)
        if not await engine.journal.imports.append(
            engine.author(),
            session,
            fresh,
            private=self._source.private,
            key=self._key,
            before=self._mark,
            after=after,
            name=self._name,
        ):
            raise JournalError(
                f"another import of the same source into {quoted_name(session)} is running: "
                "nothing of this batch was stored. Run it again when that one has finished"
            )
        self._mark = after
        self._added += len(fresh)
        engine.news.wake(session)
        if engine.spec is not None:
            engine.wrote()
            engine.touch(session)

    def progress(self) -> ImportProgress:
        """Return the numbers of items that are processed and added so far."""
        done = self._position + self._unreadable
        session_id = split_name(self._source.session)[1]
        return ImportProgress(session_id, done, self._added, self._source.total)

    def report(self) -> ImportReport:
        """Return the result, after the last batch.

        Raises:
            InvalidArgument: the source has fewer items than were imported from it.
        """
        if self._position < self._known:
            raise self._changed()
        return ImportReport(
            split_name(self._source.session)[1],
            self._added,
            self._known,
            self._unreadable,
            first_unreadable=self._first_unreadable,
        )

    def _changed(self) -> InvalidArgument:
        return InvalidArgument(
            f"the source does not begin with the {self._known} items that were imported from it "
            f"into {quoted_name(self._source.session)}: some were removed or rewritten since. "
            "Nothing was added; import it into another session"
        )
