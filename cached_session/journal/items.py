"""The items of a session as its callers get them: a short tail on the spot, a long history in
slices off the event loop."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from cached_session.journal import reads
from cached_session.journal.codec import decode_joined, decode_rows
from cached_session.journal.connection import Journal
from cached_session.journal.tails import Seen, Tail, Tails

__all__ = ["history"]

SHORT_ITEMS = 512
"""Up to this many items are read and decoded on the caller's thread ..."""
SHORT_BYTES = 256 * 1024
"""... if they are no larger than this: about two milliseconds of work."""
SLICE_ITEMS = 512
"""Items decoded at a time, off the event loop: decoding holds the interpreter's lock."""


@dataclass
class _Found:
    """What the short way found: texts that are known to be good, or rows, or neither."""

    file: int
    version: Seen | None
    texts: Sequence[bytes] | None = None
    session: int | None = None
    count: int = 0
    revision: int = 0
    rows: list[tuple[bytes, int]] | None = None


async def history(journal: Journal, tails: Tails, session_id: str, limit: int | None) -> list[Any]:
    """The latest ``limit`` items (None: all), oldest first, as fresh objects.

    Reads one snapshot: a write that commits meanwhile is in the result entirely or not at all.
    """
    file, version = tails.file, journal.version()
    tail = tails.get(session_id)
    if version is not None and tail is not None and tail.version == version:
        texts = tail.latest(limit)
        if texts is not None:
            return _warm(texts)
    found = await journal.read(
        lambda conn: _short(conn, tails, session_id, limit, _Found(file, version))
    )
    if found.texts is not None:
        return _warm(found.texts)
    if found.session is None:
        return []
    if found.rows is not None:
        items = decode_rows(found.rows)
        if len(items) == len(found.rows):
            if not any(codec for _, codec in found.rows):
                texts = tuple([text for text, _ in found.rows])
                whole, size = len(texts) == found.count, sum(map(len, texts))
                tail = Tail(file, found.version, found.revision, texts, whole, size)
                tails.put(session_id, tail)
            return items
        # Some could not be decoded: the limit counts those that can.
        if limit is None or found.count <= limit:
            return items
    session = found.session
    return await journal.read_long(lambda conn, is_wanted: _long(conn, session, limit, is_wanted))


def _warm(texts: Sequence[bytes]) -> list[Any]:
    items: list[Any] = orjson.loads(b"[" + b",".join(texts) + b"]")
    return items


def _short(
    conn: sqlite3.Connection, tails: Tails, session_id: str, limit: int | None, found: _Found
) -> _Found:
    # One snapshot for the revision and the rows: rows of a later revision, kept under this one,
    # would be joined by a batch that they hold already. The version was asked for before it: a
    # commit in between makes it out of date, and never this tail.
    with reads.snapshot(conn):
        row = reads.session_row(conn, session_id)
        if row is None:
            return found
        found.session, found.count, _, _, found.revision = row
        tail = tails.get(session_id)
        texts = tail.latest(limit) if tail is not None else None
        if tail is not None and tail.revision == found.revision and texts is not None:
            # Something was committed, but not to this session.
            tails.put(session_id, replace(tail, version=found.version))
            found.texts = texts
        elif (found.count if limit is None else min(limit, found.count)) <= SHORT_ITEMS:
            most = SHORT_ITEMS if limit is None else limit
            found.rows = reads.tail(conn, found.session, most, SHORT_BYTES)
    return found


def _long(
    conn: sqlite3.Connection, session: int, limit: int | None, is_wanted: Callable[[], bool]
) -> list[Any]:
    """A long history, in a thread; no matter what, once nobody wants it any more."""
    if limit is None:
        found: list[Any] = []
        for items in _slices(conn, session):
            found += items
            # Let the event loop's thread have the interpreter between slices.
            time.sleep(0)
            if not is_wanted():
                break
        return found
    rows = conn.execute(reads.BACKWARDS, (session,))
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


def _slices(conn: sqlite3.Connection, session: int) -> Iterator[list[Any]]:
    """All items, some at a time."""
    with reads.snapshot(conn):
        for slice_ in reads.slices(conn, session, SLICE_ITEMS):
            items = decode_joined(slice_.joined, slice_.count) if slice_.is_fast else None
            # A damaged row, or one for the other library: each by itself.
            yield decode_rows(slice_.rows()) if items is None else items
