"""The items of a session as its callers get them: a short tail on the spot, a long history in
slices off the event loop."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from cached_session.journal.journal import Journal
from cached_session.journal.sqlite.codec import array_of, decode_array, decode_rows
from cached_session.journal.sqlite.tracked_connection import Version
from cached_session.journal.tables import item_rows
from cached_session.journal.tables.sessions import revision_of, session_row
from cached_session.journal.tail_cache import MOST_BYTES_OF_ONE, Block, Tail, TailCache

__all__ = ["history"]

SHORT_ITEMS = 512
"""Up to this many items are read and decoded on the caller's thread ..."""
SHORT_BYTES = 256 * 1024
"""... if they are no larger than this: about two milliseconds of work."""
SLICE_ITEMS = 512
"""Items read and decoded at a time, off the event loop, ..."""
SLICE_BYTES = 256 * 1024
"""... and their bytes, nearly: decoding holds the interpreter's lock."""


@dataclass
class _Found:
    """What the short way found."""

    session: int
    count: int
    revision: int
    rows: list[tuple[bytes, int]] | None
    """None where they are too many, or too large, to be read on the spot."""


async def history(
    journal: Journal, tail_cache: TailCache, session_id: str, limit: int | None
) -> list[Any]:
    """The latest ``limit`` items (None: all), oldest first, as fresh objects.

    Reads one snapshot: a write that commits meanwhile is in the result entirely or not at all.
    """
    # The version is asked for before all else: a commit after that makes it out of date, and never
    # what is kept with it.
    file, version, tail = tail_cache.file, journal.version(), tail_cache.get(session_id)
    if tail is not None and (version is None or version != tail.version):
        tail = await _unchanged(journal, tail_cache, session_id, version)
    if tail is not None:
        texts = tail.latest(limit)
        if texts is not None:
            items: list[Any] = orjson.loads(array_of(texts))
            return items
        arrays = tail.arrays(limit)
        if arrays is not None:
            return await _decoded(journal, *arrays)
    return await _cold(journal, tail_cache, session_id, limit, file, version)


async def _unchanged(
    journal: Journal, tail_cache: TailCache, session_id: str, version: Version | None
) -> Tail | None:
    """What is kept of a session, if that holds: something was committed, but not to it."""

    def ask(conn: sqlite3.Connection) -> Tail | None:
        # Looked up here, where the connection is to the file that has the journal's name now.
        tail = tail_cache.get(session_id)
        if tail is None or tail.revision != revision_of(conn, session_id):
            return None
        return tail

    tail = await journal.read(ask)
    if tail is not None and version is not None:
        tail_cache.put(session_id, replace(tail, version=version))
    return tail


async def _cold(
    journal: Journal,
    tail_cache: TailCache,
    session_id: str,
    limit: int | None,
    file: int,
    version: Version | None,
) -> list[Any]:
    """The items from the file; what is read of a session's end, or all of it, is kept."""
    found = await journal.read(lambda conn: _short(conn, session_id, limit))
    if found is None:
        return []
    if found.rows is not None:
        items = decode_rows(found.rows)
        if len(items) == len(found.rows):
            if not any(codec for _, codec in found.rows):
                texts, whole = [text for text, _ in found.rows], len(items) == found.count
                tail_cache.put(
                    session_id, Tail.of(file, version, found.revision, texts, whole=whole)
                )
            return items
        # Some could not be decoded: the limit counts those that can.
        if limit is None or found.count <= limit:
            return items
    session = found.session
    if limit is not None and limit < found.count:
        return await journal.read_long(
            lambda conn, is_wanted: _latest(conn, session, limit, is_wanted)
        )
    everything, whole_tail = await journal.read_long(
        lambda conn, is_wanted: _whole(conn, session_id, session, file, version, is_wanted)
    )
    if whole_tail is not None:
        tail_cache.put(session_id, whole_tail)
    return everything if limit is None else everything[-limit:]


def _short(conn: sqlite3.Connection, session_id: str, limit: int | None) -> _Found | None:
    # One snapshot for the revision and the rows: rows of a later revision, kept under this one,
    # would be joined by a batch that they hold already.
    with item_rows.snapshot(conn):
        row = session_row(conn, session_id)
        if row is None:
            return None
        session, count, _, _, revision = row
        rows = None
        if (count if limit is None else min(limit, count)) <= SHORT_ITEMS:
            most = SHORT_ITEMS if limit is None else limit
            rows = item_rows.tail(conn, session, most, SHORT_BYTES)
    return _Found(session, count, revision, rows)


async def _decoded(journal: Journal, blocks: Sequence[Block], before: int) -> list[Any]:
    """The items of these arrays but for so many before them."""
    if sum([len(block.array) for block in blocks]) <= SHORT_BYTES:
        items = _joined(blocks)
    else:
        items = await journal.offload(_joined, blocks)
    return items[before:] if before else items


def _joined(blocks: Sequence[Block]) -> list[Any]:
    found: list[Any] = []
    for block in blocks:
        found += orjson.loads(block.array)
        # Let the event loop's thread have the interpreter between them.
        time.sleep(0)
    return found


def _whole(
    conn: sqlite3.Connection,
    session_id: str,
    session: int,
    file: int,
    version: Version | None,
    is_wanted: Callable[[], bool],
) -> tuple[list[Any], Tail | None]:
    """A long history, in a thread, and what is kept of it; no matter what, once nobody wants it any
    more."""
    found: list[Any] = []
    blocks: list[Block] = []
    keeps, size = True, 0
    with item_rows.snapshot(conn):
        revision = revision_of(conn, session_id)
        for slice_ in item_rows.slices(conn, session, SLICE_ITEMS, SLICE_BYTES):
            items = decode_array(slice_.array, slice_.count) if slice_.is_fast else None
            size += len(slice_.array)
            if items is None or size > MOST_BYTES_OF_ONE:
                keeps = False
                blocks.clear()
            if items is None:
                # A damaged row, or one for the other library: each by itself.
                items = decode_rows(slice_.rows())
            found += items
            if keeps:
                blocks.append(Block(slice_.array, slice_.count))
            time.sleep(0)
            if not is_wanted():
                keeps = False
                break
        if not keeps or not blocks or revision is None:
            return found, None
        # The last are kept one by one: for what is popped, and for short reads.
        last = [text for text, _ in slice_.rows()]
    return found, Tail.of(file, version, revision, last, whole=True, blocks=blocks[:-1])


def _latest(
    conn: sqlite3.Connection, session: int, limit: int, is_wanted: Callable[[], bool]
) -> list[Any]:
    """The latest of a long history, as `_whole`."""
    rows = conn.execute(item_rows.BACKWARDS, (session,))
    parts: list[list[Any]] = []
    left = limit
    while left and is_wanted():
        few = rows.fetchmany(min(SLICE_ITEMS, left))
        if not few:
            break
        parts.append(decode_rows(few[::-1]))
        left -= len(parts[-1])
        time.sleep(0)
    return [item for part in reversed(parts) for item in part]
