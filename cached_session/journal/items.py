"""The items of a session as its callers get them: a short tail on the spot, a long history in
slices off the event loop."""

from __future__ import annotations

import time
from typing import Any

from cached_session.journal import reads
from cached_session.journal.codec import decode_rows
from cached_session.journal.connection import Journal

__all__ = ["history"]

SHORT_ITEMS = 256
"""Up to this many items are read and decoded on the caller's thread ..."""
SHORT_BYTES = 256 * 1024
"""... if they are no larger than this: about two milliseconds of work."""
SLICE_ITEMS = 512
"""Items decoded at a time, off the event loop: decoding holds the interpreter's lock."""


async def history(journal: Journal, session_id: str, limit: int | None) -> list[Any]:
    """The latest ``limit`` items (None: all), oldest first, as fresh objects.

    Reads one snapshot: a write that commits meanwhile is in the result entirely or not at all.
    """
    row = await journal.read(lambda conn: reads.session_row(conn, session_id))
    if row is None:
        return []
    session, count = row[0], row[1]
    wanted = count if limit is None else min(limit, count)
    # One more than asked: the row count may be of a moment ago.
    if wanted <= SHORT_ITEMS:
        most = limit if limit is not None else SHORT_ITEMS + 1
        rows = await journal.read(lambda conn: reads.tail(conn, session, most, SHORT_BYTES))
        if rows is not None and (limit is not None or len(rows) <= SHORT_ITEMS):
            items = decode_rows(rows)
            if len(items) == len(rows) or limit is None or count <= limit:
                return items
    return await _long(journal, session, limit)


async def _long(journal: Journal, session: int, limit: int | None) -> list[Any]:
    sql, parameters = (
        (reads.HISTORY, (session,)) if limit is None else (reads.BACKWARDS, (session,))
    )
    found: list[list[Any]] = []
    size = 0
    async with journal.rows(sql, parameters) as fetch:
        while limit is None or size < limit:
            rows = await fetch(SLICE_ITEMS if limit is None else min(SLICE_ITEMS, limit - size))
            if not rows:
                break
            if limit is not None:
                rows.reverse()
            found.append(await journal.offload(_slice, rows))
            size += len(found[-1])
    if limit is not None:
        found.reverse()
    return [item for part in found for item in part]


def _slice(rows: list[tuple[str, int]]) -> list[Any]:
    items = decode_rows(rows)
    # Let the event loop's thread have the interpreter between slices.
    time.sleep(0)
    return items
