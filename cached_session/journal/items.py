"""The items of a session as its callers get them: a short tail on the spot, a long history in
slices off the event loop."""

from __future__ import annotations

import sqlite3
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import orjson

from cached_session.journal import reads
from cached_session.journal.codec import decode_rows
from cached_session.journal.connection import Journal

__all__ = ["Tails", "history"]

SHORT_ITEMS = 256
"""Up to this many items are read and decoded on the caller's thread ..."""
SHORT_BYTES = 256 * 1024
"""... if they are no larger than this: about two milliseconds of work."""
SLICE_ITEMS = 512
"""Items decoded at a time, off the event loop: decoding holds the interpreter's lock."""
WARM_ENTRIES = 256
WARM_BYTES = 64 * 1024
"""Larger tails are not kept: at most 16 MiB in all."""

Version = tuple[int, int]


class Tails:
    """Short results of sessions in use, as JSON text: valid until anybody commits to the file.

    Kept because asking SQLite whether it changed costs a sixth of reading a tail of 20 items from
    it; a caller still gets fresh objects, decoded from the text.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int | None], tuple[Version, str]] = OrderedDict()

    def get(self, key: tuple[str, int | None], version: Version) -> str | None:
        """The text kept for a read, if the journal has not changed since."""
        kept = self._kept.get(key)
        return kept[1] if kept is not None and kept[0] == version else None

    def put(self, key: tuple[str, int | None], version: Version, text: str) -> None:
        """Keep a result, in place of the one that was kept longest."""
        if len(text) > WARM_BYTES:
            return
        self._kept.pop(key, None)
        self._kept[key] = (version, text)
        while len(self._kept) > WARM_ENTRIES:
            try:
                self._kept.popitem(last=False)
            except KeyError:  # another thread was quicker
                break


@dataclass
class _Short:
    """What the short way found: a text that is known to be good, or rows, or neither."""

    version: Version
    text: str | None = None
    session: int | None = None
    count: int = 0
    rows: list[tuple[str, int]] | None = None


async def history(journal: Journal, tails: Tails, session_id: str, limit: int | None) -> list[Any]:
    """The latest ``limit`` items (None: all), oldest first, as fresh objects.

    Reads one snapshot: a write that commits meanwhile is in the result entirely or not at all.
    """
    found = await journal.read(lambda conn: _short(conn, tails, session_id, limit))
    if found.text is not None:
        warm: list[Any] = orjson.loads(found.text)
        return warm
    if found.session is None:
        return []
    if found.rows is not None:
        items = decode_rows(found.rows)
        if len(items) == len(found.rows):
            if not any(codec for _, codec in found.rows):
                text = "[" + ",".join([payload for payload, _ in found.rows]) + "]"
                tails.put((session_id, limit), found.version, text)
            return items
        # Some could not be decoded: the limit counts those that can.
        if limit is None or found.count <= limit:
            return items
    return await _long(journal, found.session, limit)


def _short(conn: sqlite3.Connection, tails: Tails, session_id: str, limit: int | None) -> _Short:
    (changed,) = conn.execute("PRAGMA data_version").fetchone()
    # `data_version` tells of other connections; in memory there is only this one.
    version = (changed, conn.total_changes)
    text = tails.get((session_id, limit), version)
    if text is not None:
        return _Short(version, text)
    row = reads.session_row(conn, session_id)
    if row is None:
        return _Short(version)
    session, count = row[0], row[1]
    found = _Short(version, None, session, count)
    if (count if limit is None else min(limit, count)) <= SHORT_ITEMS:
        # One more than there should be: the count may be of a moment ago.
        most = SHORT_ITEMS + 1 if limit is None else limit
        rows = reads.tail(conn, session, most, SHORT_BYTES)
        if rows is not None and (limit is not None or len(rows) <= SHORT_ITEMS):
            found.rows = rows
    return found


async def _long(journal: Journal, session: int, limit: int | None) -> list[Any]:
    sql = reads.HISTORY if limit is None else reads.BACKWARDS
    found: list[list[Any]] = []
    size = 0
    async with journal.rows(sql, (session,)) as fetch:
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
