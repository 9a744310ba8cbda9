"""Carrying a source's items into a session: in batches, each in one transaction with its mark."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from cached_session.engine.engine import Engine
from cached_session.errors import InvalidArgument, JournalError
from cached_session.journal.journal import shielded
from cached_session.journal.sqlite.codec import encode_item
from cached_session.journal.tables import import_marks
from cached_session.journal.tables.import_marks import NOTHING, Mark
from cached_session.models import ImportProgress, ImportReport

__all__ = ["BATCH_BYTES", "BATCH_ITEMS", "Row", "carry", "encoded", "threaded"]

BATCH_ITEMS = 200
"""Items of one transaction: few enough to be one request, many enough to share its commit."""
BATCH_BYTES = 256 * 1024
"""Text of one transaction; a single larger item still goes, alone."""

Row = tuple[str, int] | None
"""An item as the journal stores it (JSON text, codec); None for one that cannot be carried."""


async def threaded(engine: Engine, rows: Iterator[Row]) -> AsyncIterator[list[Row]]:
    """Batches of a source that is read in a thread: files and digests hold no event loop up."""
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


async def encoded(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[list[Row]]:
    """Batches of a source that gives items one by one.

    Raises:
        InvalidArgument: JSON cannot carry one of them.
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


async def carry(
    engine: Engine,
    session_id: str,
    source: str,
    batches: AsyncIterator[list[Row]],
    *,
    private: bool,
    is_named: bool = False,
    total: int | None = None,
    on_progress: Callable[[ImportProgress], None] | None = None,
) -> ImportReport:
    """Append what an earlier import of the same source has not brought yet. ``is_named``: no other
    source has its name, whatever it begins with.

    If cancelled, whole batches are in, and the next import goes on behind them.

    Raises:
        InvalidArgument: the source no longer begins with what was imported of it.
        JournalError: the journal cannot be written, or another import of this source is under way.
    """
    name = import_marks.name_key(session_id, source) if is_named else None
    begun, mark = "", NOTHING
    if name is not None:
        begun, mark = await engine.journal.read(lambda conn: import_marks.named(conn, name))
    key = chain = ""
    known = mark.count
    position = added = unreadable = 0
    first_unreadable: int | None = None
    async for batch in batches:
        fresh: list[tuple[str, int]] = []
        for row in batch:
            if row is None:
                unreadable += 1
                first_unreadable = first_unreadable or position + unreadable
                continue
            if not key:
                key = import_marks.mark_key(session_id, source, row[0])
                if begun not in ("", key):
                    raise _changed(session_id, known)
                mark = await engine.journal.read(
                    lambda conn, key=key: import_marks.mark_of(conn, key)  # type: ignore[misc]
                )
                known = mark.count
            position += 1
            chain = import_marks.chained(chain, row[0])
            if position > known:
                fresh.append(row)
            elif position == known and chain != mark.chain:
                raise _changed(session_id, known)
        if fresh:
            after = Mark(position, chain)
            await _append(engine, session_id, fresh, private, key, mark, after, name)
            mark = after
            added += len(fresh)
        if on_progress is not None:
            on_progress(ImportProgress(session_id, position + unreadable, added, total))
    if position < known:
        raise _changed(session_id, known)
    return ImportReport(session_id, added, known, unreadable, first_unreadable=first_unreadable)


async def _append(
    engine: Engine,
    session_id: str,
    fresh: list[tuple[str, int]],
    private: bool,
    key: str,
    before: Mark,
    after: Mark,
    name: str | None,
) -> None:
    author = engine.author()
    written = await engine.journal.write(
        lambda conn: import_marks.append_marked(
            conn,
            author,
            session_id,
            fresh,
            private=private,
            key=key,
            before=before,
            after=after,
            name=name,
        )
    )
    if written is None:
        raise JournalError(
            f"another import of the same source into {session_id!r} is under way: nothing of this "
            "batch was stored. Run it again when that one has finished"
        )
    engine.tail_cache.appended(session_id, written.revision, written.version, fresh)
    engine.news.wake(session_id)
    if engine.spec is not None:
        engine.wrote()
        engine.touch(session_id)


def _changed(session_id: str, known: int) -> InvalidArgument:
    return InvalidArgument(
        f"the source does not begin with the {known} items that were imported from it into "
        f"{session_id!r}: some were removed or rewritten since. Nothing was added; import it into "
        "another session"
    )
