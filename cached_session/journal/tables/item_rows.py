"""Queries over the items of a session, in the order of the history.

Their cost depends on the result, not on the length of the history.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cached_session.history.order import Position
from cached_session.journal.sqlite.codec import decode_rows
from cached_session.journal.tables.sessions import session_row
from cached_session.journal.tables.states import PLACE, backwards, sync_state
from cached_session.models import Entry, Turn

__all__ = [
    "BACKWARDS",
    "entries",
    "entries_at",
    "entries_backwards",
    "entry_at",
    "is_whole_tail",
    "position_of",
    "ranked",
    "run_of",
    "slices",
    "snapshot",
    "tail",
    "turn_of",
    "turns",
]

EXPORT = (
    "SELECT CAST(payload AS BLOB), codec FROM items "
    "WHERE session = (SELECT id FROM sessions WHERE session_id = ?) "
    f"ORDER BY session, {PLACE}, idx"
)
"""SQL for all items of a session in order: one scan of clustered rows. The payload is read as
bytes, so that one row with damaged text does not prevent the others from being read."""
BACKWARDS = (
    f"SELECT CAST(payload AS BLOB), codec FROM items WHERE session = ? ORDER BY {backwards()}"
)
"""SQL for all items of a session, latest first. The session is selected by its row number."""
TAIL = f"{BACKWARDS} LIMIT ?"
FORWARD = (
    f"FROM items WHERE session = ? AND ({PLACE}, idx) > (?, ?, ?, ?, ?, ?, ?) "
    f"ORDER BY session, {PLACE}, idx LIMIT ?"
)
JOINED = (
    "SELECT CAST(group_concat(payload) AS BLOB), count(*), max(codec) "
    f"FROM (SELECT payload, codec {FORWARD})"
)
"""SQL that joins the items of a slice to one text. A Python row for each item would double the
cost."""


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
    oldest = conn.execute(
        "SELECT writer, min(counter) FROM (SELECT writer, counter FROM items WHERE session = ? "
        f"ORDER BY {backwards()} LIMIT ?) "
        "GROUP BY writer",
        (session, limit),
    ).fetchall()
    for writer, counter in oldest:
        # `above` has the ranges after a gap. A range that begins after the writer's oldest item
        # means that a gap lies between them.
        later = conn.execute(
            "SELECT 1 FROM above WHERE session = ? AND writer = ? AND first > ?",
            (session, writer, counter),
        ).fetchone()
        if later:
            return False
    return True


def tail(
    conn: sqlite3.Connection, session: int, limit: int, most_bytes: int
) -> list[tuple[bytes, int]] | None:
    """Return the latest ``limit`` rows, oldest first; None if they exceed ``most_bytes``."""
    cursor = conn.execute(TAIL, (session, limit))
    rows = cursor.fetchmany(64)
    size = sum(len(payload) for payload, _ in rows)
    while size <= most_bytes:
        more = cursor.fetchmany(64)
        if not more:
            rows.reverse()
            return rows
        size += sum(len(payload) for payload, _ in more)
        rows += more
    cursor.close()
    return None


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
    position: tuple[Any, ...] | None = (-(1 << 63), "", 0, 0, "", 0, 0)
    most = most_items
    while position is not None:
        key = (session, *position, most)
        joined, count, codec = conn.execute(JOINED, key).fetchone()
        if not count:
            return

        def rows(key: tuple[Any, ...] = key) -> list[tuple[bytes, int]]:
            return conn.execute(f"SELECT CAST(payload AS BLOB), codec {FORWARD}", key).fetchall()

        yield Slice(b"[%b]" % joined, count, not codec, rows)
        last = conn.execute(
            f"SELECT {PLACE}, idx {FORWARD} OFFSET ?", (*key[:-1], 1, most - 1)
        ).fetchone()
        if last is not None and not _is_after(last, position):
            # The next slice would begin before the end of this slice, and the loop would be
            # endless.
            raise ValueError(f"the items of session {session} are not in order at {last!r:.80}")
        position = last
        # Limit the bytes of the next slice, under the assumption that its items are as large as
        # these.
        most = max(1, min(most_items, count * most_bytes // max(1, len(joined))))


def _is_after(position: tuple[Any, ...], before: tuple[Any, ...]) -> bool:
    """Return whether a position is after another one and has values of the right types.

    SQLite compares values of other types by its own rules, so it may sort a damaged item after
    itself.
    """
    return tuple(map(type, position)) == (int, str, int, int, str, int, int) and position > before


ENTRY = (
    "SELECT CAST(i.payload AS BLOB), i.codec, i.turn_stamp, i.turn_writer, i.turn_counter, "
    "i.stamp, i.writer, i.counter, i.idx, o.state, o.said_ms "
    "FROM items i CROSS JOIN ops o ON o.session = i.session AND o.writer = i.writer "
    "AND o.counter = i.counter WHERE i.session = ? "
)
ENTRIES = f"{ENTRY}ORDER BY {backwards('i')} LIMIT ?"
AT = (
    f"{ENTRY}AND i.turn_stamp = ? AND i.turn_writer = ? AND i.turn_counter = ? "
    "AND i.stamp = ? AND i.writer = ? AND i.counter = ? AND i.idx = ?"
)


def entries_backwards(
    conn: sqlite3.Connection, session_id: str, limit: int | None
) -> Iterator[tuple[Entry, bytes]]:
    """Yield the latest entries with their payloads, latest first. Ranks are computed from the
    number of items, which the journal stores."""
    row = session_row(conn, session_id)
    if row is None:
        return
    session, count = row[0], row[1]
    rows = conn.execute(ENTRIES, (session, -1 if limit is None else limit))
    for back, row in enumerate(rows):
        for entry in _entry(count - 1 - back, row):
            yield entry, row[0]


def _entry(rank: int, row: tuple[Any, ...]) -> list[Entry]:
    """Return the entry of an `ENTRY` row; an empty list if its item cannot be decoded."""
    payload, codec, *turn, stamp, writer, counter, index, state, said_ms = row
    return [
        Entry(
            rank=rank,
            item=item,
            stamp=stamp,
            run=run_of(stamp, writer),
            turn=turn_of(*turn),
            writer=writer,
            counter=counter,
            index=index,
            sync_state=sync_state(state),
            said_at=said_ms / 1000,
        )
        for item in decode_rows([(payload, codec)])
    ]


def ranked(
    conn: sqlite3.Connection, session: int, count: int, positions: Iterable[Position]
) -> Iterator[Entry]:
    """Yield the entries at these positions, which must be sorted latest first. Ranks are computed
    by counting the keys between two positions, without reading the items."""
    above: Position | None = None
    rank = count
    for position in positions:
        row = conn.execute(AT, (session, *position)).fetchone()
        if row is None:
            continue
        rank -= _between(conn, session, position, above)
        above = position
        yield from _entry(rank, row)


def entry_at(conn: sqlite3.Connection, session: int, position: Position, rank: int) -> list[Entry]:
    """Return the entry at a position, with this rank; an empty list if no item can be decoded
    there."""
    row = conn.execute(AT, (session, *position)).fetchone()
    return [] if row is None else _entry(rank, row)


def run_of(stamp: int, writer: str) -> str:
    """Return the name of a run."""
    return f"{stamp:016x}-{writer}"


def position_of(entry: Entry) -> Position:
    """Return the position of an entry."""
    stamp, writer, counter = entry.turn.split("-")
    turn = (int(stamp, 16), writer, int(counter))
    return (*turn, entry.stamp, entry.writer, entry.counter, entry.index)


def turn_of(stamp: int, writer: str, counter: int) -> str:
    """Return the name of a turn."""
    return f"{stamp:016x}-{writer}-{counter}"


def _between(
    conn: sqlite3.Connection, session: int, position: Position, above: Position | None
) -> int:
    """Count the items from a position on, up to but not including the position ``above``."""
    below = "" if above is None else f"AND ({PLACE}, idx) < (?, ?, ?, ?, ?, ?, ?)"
    (count,) = conn.execute(
        "SELECT count(*) FROM items WHERE session = ? "
        f"AND ({PLACE}, idx) >= (?, ?, ?, ?, ?, ?, ?) {below}",
        (session, *position, *(above or ())),
    ).fetchone()
    return int(count)


def entries(conn: sqlite3.Connection, session_id: str, limit: int | None) -> list[Entry]:
    """Return the latest ``limit`` entries (None: all), oldest first."""
    # The limit counts only items that can be decoded, as in `get_items`.
    rows = entries_backwards(conn, session_id, None)
    found = [entry for entry, _ in islice(rows, limit)]
    found.reverse()
    return found


def turns(conn: sqlite3.Connection, session_id: str, limit: int | None) -> list[Turn]:
    """Return the latest ``limit`` turns (None: all), oldest first. The cost depends only on the
    number of items in these turns."""
    found: list[list[Entry]] = []
    for entry, _ in entries_backwards(conn, session_id, None):
        if not found or found[-1][-1].turn != entry.turn:
            if limit is not None and len(found) >= limit:
                break
            found.append([])
        found[-1].append(entry)
    return [Turn(turn[0].turn, tuple(reversed(turn))) for turn in reversed(found)]


def entries_at(
    conn: sqlite3.Connection, session_id: str, positions: Iterable[tuple[str, int, int]]
) -> list[Entry]:
    """Return the visible entries at these (writer, counter, index) positions, in the given
    order."""
    wanted = list(positions)
    with snapshot(conn):
        row = session_row(conn, session_id)
        if row is None:
            return []
        standing: set[Position] = set()
        for writer, counter, index in wanted:
            found = conn.execute(
                f"SELECT {PLACE} FROM ops WHERE session = ? AND writer = ? AND counter = ?",
                (row[0], writer, counter),
            ).fetchone()
            if found is not None:
                standing.add((*found, index))
        entries = {
            (entry.writer, entry.counter, entry.index): entry
            for entry in ranked(conn, row[0], row[1], sorted(standing, reverse=True))
        }
    return [entries[position] for position in wanted if position in entries]
