"""The items of a session as its callers get them: a short tail on the spot, a long history in
slices off the event loop."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from cached_session.journal import reads
from cached_session.journal.codec import decode_rows
from cached_session.journal.connection import Journal
from cached_session.journal.tails import Tail, Tails, Version

__all__ = ["history"]

SHORT_ITEMS = 256
"""Up to this many items are read and decoded on the caller's thread ..."""
SHORT_BYTES = 256 * 1024
"""... if they are no larger than this: about two milliseconds of work."""
SLICE_ITEMS = 512
"""Items decoded at a time, off the event loop: decoding holds the interpreter's lock."""


@dataclass
class _Found:
    """What the short way found: texts that are known to be good, or rows, or neither."""

    version: Version
    texts: Sequence[bytes] | None = None
    session: int | None = None
    count: int = 0
    revision: int = 0
    rows: list[tuple[bytes, int]] | None = None


async def history(journal: Journal, tails: Tails, session_id: str, limit: int | None) -> list[Any]:
    """The latest ``limit`` items (None: all), oldest first, as fresh objects.

    Reads one snapshot: a write that commits meanwhile is in the result entirely or not at all.
    """
    found = await journal.read(lambda conn: _short(conn, tails, session_id, limit))
    if found.texts is not None:
        warm: list[Any] = orjson.loads(b"[" + b",".join(found.texts) + b"]")
        return warm
    if found.session is None:
        return []
    if found.rows is not None:
        items = decode_rows(found.rows)
        if len(items) == len(found.rows):
            if not any(codec for _, codec in found.rows):
                texts = tuple([text for text, _ in found.rows])
                whole = len(texts) == found.count
                tails.put(session_id, Tail(found.version, found.revision, texts, whole))
            return items
        # Some could not be decoded: the limit counts those that can.
        if limit is None or found.count <= limit:
            return items
    return await _long(journal, found.session, limit)


def _short(conn: sqlite3.Connection, tails: Tails, session_id: str, limit: int | None) -> _Found:
    (changed,) = conn.execute("PRAGMA data_version").fetchone()
    # `data_version` tells of other connections; in memory there is only this one.
    version = (tails.file, changed, conn.total_changes)
    tail = tails.get(session_id)
    texts = tail.latest(limit) if tail is not None else None
    if tail is not None and tail.version == version and texts is not None:
        return _Found(version, texts)
    # One snapshot for the revision and the rows: rows of a later revision, kept under this one,
    # would be joined by a batch that they hold already.
    conn.execute("BEGIN")
    try:
        return _snapshot(conn, tails, session_id, limit, version)
    finally:
        conn.execute("COMMIT")


def _snapshot(
    conn: sqlite3.Connection, tails: Tails, session_id: str, limit: int | None, version: Version
) -> _Found:
    row = reads.session_row(conn, session_id)
    if row is None:
        return _Found(version)
    session, count, _, _, revision = row
    tail = tails.get(session_id)
    texts = tail.latest(limit) if tail is not None else None
    if tail is not None and tail.revision == revision and texts is not None:
        # Something was committed, but not to this session.
        tails.put(session_id, replace(tail, version=version))
        return _Found(version, texts)
    found = _Found(version, None, session, count, revision)
    if (count if limit is None else min(limit, count)) <= SHORT_ITEMS:
        found.rows = reads.tail(conn, session, SHORT_ITEMS if limit is None else limit, SHORT_BYTES)
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


def _slice(rows: list[tuple[bytes, int]]) -> list[Any]:
    items = decode_rows(rows)
    # Let the event loop's thread have the interpreter between slices.
    time.sleep(0)
    return items
