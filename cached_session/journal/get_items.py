"""Reads of items from the file. A short tail is read on the caller's thread, and a long history
is read in slices on another thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import orjson

from cached_session.journal.readers import Readers
from cached_session.journal.sqlite.codec import decode_array, decode_rows
from cached_session.journal.sqlite.tracked_connection import Version
from cached_session.journal.tables import item_rows
from cached_session.journal.tables.sessions import revision_of, session_row
from cached_session.journal.tail_cache import MOST_BYTES_OF_ONE, Block, Tail

__all__ = ["decode_blocks", "read_items"]

SHORT_ITEMS = 512
"""Maximum number of items that are read and decoded on the caller's thread."""
SHORT_BYTES = 256 * 1024
"""Maximum number of bytes that are read and decoded on the caller's thread: about two milliseconds
of work."""
SLICE_ITEMS = 512
"""Maximum number of items of a long history that a thread reads and decodes at a time."""
SLICE_BYTES = 256 * 1024
"""Approximate size in bytes of a slice of a long history. Slices are small because decoding holds
the interpreter lock."""


@dataclass
class _Found:
    """The result of a short read."""

    session: int
    count: int
    revision: int
    rows: list[tuple[bytes, int]] | None
    """The rows, oldest first; None if they are too many or too large for a short read."""


async def read_items(
    readers: Readers, session_id: str, limit: int | None, file: int, version: Version | None
) -> tuple[list[Any], Tail | None]:
    """Return the latest items from the file, and the tail to cache under ``version``. The tail is
    None if the items cannot be cached."""
    found = await readers.read(_read_short, session_id, limit)
    if found is None:
        return [], None
    if found.rows is not None:
        items = decode_rows(found.rows)
        if len(items) == len(found.rows):
            return items, _tail_of(found, file, version)
        # Some rows could not be decoded. The limit counts only the rows that can be decoded.
        if limit is None or found.count <= limit:
            return items, None
    session = found.session
    if limit is not None and limit < found.count:
        return await readers.read_long(partial(_read_latest, session, limit)), None
    everything, tail = await readers.read_long(
        partial(_read_whole, session_id, session, file, version)
    )
    return everything if limit is None else everything[-limit:], tail


def _tail_of(found: _Found, file: int, version: Version | None) -> Tail | None:
    rows = found.rows or []
    if any(codec for _, codec in rows):
        return None
    texts = [text for text, _ in rows]
    return Tail.of(file, version, found.revision, texts, whole=len(rows) == found.count)


def _read_short(conn: sqlite3.Connection, session_id: str, limit: int | None) -> _Found | None:
    # Read the revision and the rows in one snapshot. Otherwise the rows could contain a batch
    # that is newer than the revision, and the cache would append this batch a second time.
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


async def decode_blocks(readers: Readers, blocks: Sequence[Block], skipped: int) -> list[Any]:
    """Return the items of these arrays without the first ``skipped`` items."""
    if sum([len(block.array) for block in blocks]) <= SHORT_BYTES:
        items = _decode_all(blocks)
    else:
        items = await readers.offload(_decode_all, blocks)
    return items[skipped:] if skipped else items


def _decode_all(blocks: Sequence[Block]) -> list[Any]:
    found: list[Any] = []
    for block in blocks:
        found += orjson.loads(block.array)
        # Release the interpreter lock for the event loop's thread.
        time.sleep(0)
    return found


def _read_whole(
    session_id: str,
    session: int,
    file: int,
    version: Version | None,
    conn: sqlite3.Connection,
    is_wanted: Callable[[], bool],
) -> tuple[list[Any], Tail | None]:
    """Return all items of a long history, and the tail to cache. Stop early if the caller no longer
    waits."""
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
                # A row is damaged, or needs the other JSON library: decode the rows one by one.
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
        # Cache the last items as single texts, for pops and short reads.
        last = [text for text, _ in slice_.rows()]
    return found, Tail.of(file, version, revision, last, whole=True, blocks=blocks[:-1])


def _read_latest(
    session: int, limit: int, conn: sqlite3.Connection, is_wanted: Callable[[], bool]
) -> list[Any]:
    """Return the latest items of a long history. Stop early if the caller no longer waits."""
    rows = item_rows.rows_backwards(conn, session)
    parts: list[list[Any]] = []
    left = limit
    while left and is_wanted():
        few = list(islice(rows, min(SLICE_ITEMS, left)))
        if not few:
            break
        parts.append(decode_rows(few[::-1]))
        left -= len(parts[-1])
        time.sleep(0)
    return [item for part in reversed(parts) for item in part]
