"""Queries over the items of a session, in the order of the history.

Their cost depends on the result, not on the length of the history. A row of `ops` holds the items
of one append, so the queries read operations and take the visible items out of their bodies.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from cached_session.journal.sqlite.codec import array_of
from cached_session.journal.tables.payloads import split_bodies, visible_payloads
from cached_session.journal.tables.states import (
    ORDERED,
    PLACE,
    SHOWN,
    backwards,
)

__all__ = [
    "EXPORT",
    "Slice",
    "is_whole_tail",
    "payloads_of",
    "rows_backwards",
    "rows_of",
    "slices",
    "snapshot",
    "tail",
]

BODY = "CAST(body AS BLOB), codec, count, live"
"""The columns of the items of an append. The body is read as bytes, so that damaged text in one row
does not prevent the others from being read."""
OF_NAME = "(SELECT id FROM sessions WHERE session_id = ?)"
EXPORT = f"SELECT {BODY} FROM ops WHERE {SHOWN.replace('?', OF_NAME)} ORDER BY {ORDERED}"
"""SQL for all appends of a session in order. `rows_of` returns the items of a row."""
BACKWARDS = f"SELECT {BODY} FROM ops WHERE {SHOWN} ORDER BY {backwards()}"
TAIL = (
    "SELECT CASE WHEN bytes <= ? THEN CAST(body AS BLOB) END, codec, count, live, bytes "
    f"FROM ops WHERE {SHOWN} ORDER BY {backwards()}"
)
FORWARD = f"FROM ops WHERE {SHOWN} AND ({PLACE}) > (?, ?, ?, ?, ?, ?) ORDER BY {ORDERED} LIMIT ?"
JOINED = (
    "SELECT CAST(group_concat(body, char(30)) AS BLOB), count(*), sum(live), max(codec), "
    f"max(live < count) FROM (SELECT body, live, codec, count {FORWARD})"
)
"""SQL that joins the bodies of a slice to one text. A Python row for each operation would double
the cost."""
FIRST_OPERATIONS = 64
"""Maximum number of operations in the first slice, when the size of the operations is unknown."""


@contextmanager
def snapshot(conn: sqlite3.Connection) -> Iterator[None]:
    """Run several queries over one snapshot of the journal."""
    conn.execute("BEGIN")
    try:
        yield
    finally:
        conn.execute("COMMIT")


def is_whole_tail(conn: sqlite3.Connection, session: int, limit: int) -> bool:
    """Return whether no operation is known to be missing among the latest ``limit`` items.

    Operations may be missing there, because a server's listing is not in the order of the history:
    its first page may have some items of many turns instead of the latest items.
    """
    oldest: dict[str, int] = {}
    for writer, counter, live in conn.execute(
        f"SELECT writer, counter, live FROM ops WHERE {SHOWN} ORDER BY {backwards()}",
        (session,),
    ):
        if limit <= 0:
            break
        limit -= live
        oldest[writer] = min(counter, oldest.get(writer, counter))
    for writer, counter in oldest.items():
        # `above` has the ranges after a gap. A range that begins after the writer's oldest item
        # means that a gap lies between them.
        later = conn.execute(
            "SELECT 1 FROM above WHERE session = ? AND writer = ? AND first > ?",
            (session, writer, counter),
        ).fetchone()
        if later:
            return False
    return True


# -- payloads ------------------------------------------------------------------------------------


def rows_of(body: bytes, codec: int, count: int, live: int) -> list[tuple[bytes, int]]:
    """Return the (payload, codec) row of each visible item of an append, in order."""
    return [(payload, codec) for _, payload in visible_payloads(body, count, live)]


def rows_backwards(conn: sqlite3.Connection, session: int) -> Iterator[tuple[bytes, int]]:
    """Yield the (payload, codec) rows of all items of a session, latest first."""
    for row in conn.execute(BACKWARDS, (session,)):
        yield from reversed(rows_of(*row))


def payloads_of(conn: sqlite3.Connection, seq: int) -> list[tuple[int, bytes]]:
    """Return the index and the payload of each visible item of an operation, in order."""
    row = conn.execute(
        "SELECT CAST(body AS BLOB), count, live FROM ops WHERE seq = ?", (seq,)
    ).fetchone()
    return [] if row is None else visible_payloads(*row)


def tail(
    conn: sqlite3.Connection, session: int, limit: int, most_bytes: int
) -> list[tuple[bytes, int]] | None:
    """Return the latest ``limit`` rows, oldest first; None if they exceed ``most_bytes``."""
    rows: list[tuple[bytes, int]] = []
    size = 0
    for body, codec, count, live, bytes_ in conn.execute(TAIL, (most_bytes, session)):
        if len(rows) >= limit:
            break
        size += bytes_
        if size > most_bytes:
            return None
        found = rows_of(body, codec, count, live)
        found.reverse()
        rows += found
    del rows[limit:]
    rows.reverse()
    return rows


@dataclass
class Slice:
    """Consecutive items of a session."""

    array: bytes
    """The items as one JSON array."""
    count: int
    is_fast: bool
    """True if the fast JSON library has encoded every item."""
    rows: Callable[[], list[tuple[bytes, int]]]
    """A function that returns the (payload, codec) row of each item."""


def slices(
    conn: sqlite3.Connection, session: int, most_items: int, most_bytes: int
) -> Iterator[Slice]:
    """Yield all items of a session in order, in slices of limited size. Call this function
    inside `snapshot`."""
    place: tuple[Any, ...] | None = (-(1 << 63), "", 0, 0, "", 0)
    most = min(most_items, FIRST_OPERATIONS)
    while place is not None:
        key = (session, *place, most)
        joined, operations, count, codec, is_partial = conn.execute(JOINED, key).fetchone()
        if not operations:
            return

        def rows(key: tuple[Any, ...] = key) -> list[tuple[bytes, int]]:
            found = conn.execute(f"SELECT {BODY} {FORWARD}", key).fetchall()
            return [row for operation in found for row in rows_of(*operation)]

        if is_partial or count > 2 * most_items or len(joined) > 2 * most_bytes:
            yield from _cut(rows(), most_items, most_bytes)
        else:
            yield Slice(b"[%b]" % split_bodies(joined), count, not codec, rows)
        last = conn.execute(
            f"SELECT {PLACE} {FORWARD} OFFSET ?", (*key[:-1], 1, most - 1)
        ).fetchone()
        if last is not None and not _is_after(last, place):
            # The next slice would begin before the end of this slice, and the loop would be
            # endless.
            raise ValueError(f"the items of session {session} are not in order at {last!r:.80}")
        place = last
        # Limit the next slice, under the assumption that its operations are as large as these.
        most = min(
            most_items,
            operations * most_bytes // max(1, len(joined)),
            operations * most_items // max(1, count),
        )
        most = max(1, most)


def _cut(rows: list[tuple[bytes, int]], most_items: int, most_bytes: int) -> Iterator[Slice]:
    """Yield these rows in slices of limited size."""
    start = 0
    while start < len(rows):
        end, size = start, 0
        while end < len(rows) and end - start < most_items and size < most_bytes:
            size += len(rows[end][0])
            end += 1
        some = rows[start:end]
        array = array_of([payload for payload, _ in some])
        yield Slice(array, len(some), not any(codec for _, codec in some), partial(list, some))
        start = end


def _is_after(place: tuple[Any, ...], before: tuple[Any, ...]) -> bool:
    """Return whether a place is after another one and has values of the right types.

    SQLite compares values of other types by its own rules, so it may sort a damaged operation after
    itself.
    """
    return tuple(map(type, place)) == (int, str, int, int, str, int) and place > before
