"""Queries over the entries of a session: items with their ranks, turns and states."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import Any

from cached_session.history.order import Position
from cached_session.journal.sqlite.codec import decode_rows
from cached_session.journal.tables.dots import find_operation, find_state
from cached_session.journal.tables.item_rows import BODY, snapshot
from cached_session.journal.tables.payloads import visible_payloads
from cached_session.journal.tables.sessions import session_row
from cached_session.journal.tables.states import ACKED, PLACE, SHOWN, Place, backwards, sync_state
from cached_session.models import Entry, Turn

__all__ = [
    "EntryReader",
    "entries",
    "entries_at",
    "entries_backwards",
    "position_of",
    "ranked",
    "run_of",
    "turn_of",
    "turns",
    "turns_backwards",
]

STATE = (
    "(SELECT state FROM waiting w WHERE w.session = ops.session AND w.writer = ops.writer "
    "AND w.counter = ops.counter)"
)
OPERATION = f"SELECT {PLACE}, said_ms, coalesce({STATE}, {ACKED}), {BODY} FROM ops"
PRECEDING = f"{OPERATION} WHERE {SHOWN} AND ({PLACE}) <= (?, ?, ?, ?, ?, ?) ORDER BY {backwards()}"
OPERATIONS = f"{OPERATION} WHERE {SHOWN} ORDER BY {backwards()}"


class _Append:
    """An append with visible items."""

    def __init__(self, row: tuple[Any, ...]) -> None:
        """Take a row of `OPERATION`."""
        *place, self.said_ms, self.state, body, self.codec, count, self.live = row
        self.place: Place = tuple(place)
        self.shown = visible_payloads(body, count, self.live)

    def entry(self, rank: int, index: int, payload: bytes) -> list[Entry]:
        """Return the entry of an item; an empty list if the item cannot be decoded."""
        stamp, writer, counter = self.place[3:]
        turn = turn_of(*self.place[:3])
        return [
            Entry(
                rank=rank,
                item=item,
                stamp=stamp,
                run=run_of(stamp, writer),
                turn=turn,
                writer=writer,
                counter=counter,
                index=index,
                sync_state=sync_state(self.state),
                said_at=self.said_ms / 1000,
            )
            for item in decode_rows([(payload, self.codec)])
        ]


def _append_at(conn: sqlite3.Connection, session: int, place: Place) -> _Append | None:
    """Return the append at a place; None if no item of it is visible."""
    known = find_state(conn, session, place[4:])
    if known is None:
        return None
    row = conn.execute(f"{OPERATION} WHERE seq = ? AND branch = '' AND live > 0", known[:1])
    found = row.fetchone()
    return None if found is None else _Append(found)


class EntryReader:
    """Reads the entries at given positions. Consecutive positions of one operation cost one
    query."""

    def __init__(self, conn: sqlite3.Connection, session: int) -> None:
        """Read entries of the session with this row number."""
        self._conn = conn
        self._session = session
        self._place: Place | None = None
        self._found: _Append | None = None
        self._payloads: dict[int, bytes] = {}

    def at(self, position: Position, rank: int) -> list[Entry]:
        """Return the entry at a position, with this rank; an empty list if no item can be decoded
        there."""
        *place, index = position
        self._read(tuple(place))  # type: ignore[arg-type]
        payload = self._payloads.get(index)
        if payload is None or self._found is None:
            return []
        return self._found.entry(rank, index, payload)

    def _read(self, place: Place) -> None:
        if place == self._place:
            return
        self._place, self._found = place, _append_at(self._conn, self._session, place)
        self._payloads = dict(self._found.shown) if self._found else {}


def entries_backwards(conn: sqlite3.Connection, session_id: str) -> Iterator[tuple[Entry, bytes]]:
    """Yield all entries with their payloads, latest first. Ranks are computed from the number of
    items, which the journal stores."""
    row = session_row(conn, session_id)
    if row is None:
        return
    session, rank = row[0], row[1]
    for operation in conn.execute(OPERATIONS, (session,)):
        found = _Append(operation)
        rank -= found.live
        for offset in range(len(found.shown) - 1, -1, -1):
            index, payload = found.shown[offset]
            for entry in found.entry(rank + offset, index, payload):
                yield entry, payload


def _preceding(
    conn: sqlite3.Connection, session_id: str, before: Entry
) -> Iterator[tuple[Entry, bytes]]:
    """Yield the entries that precede an entry, latest first, with ranks that count back from its
    rank."""
    row = session_row(conn, session_id)
    if row is None:
        return
    *place, end = position_of(before)
    rank = before.rank
    for operation in conn.execute(PRECEDING, (row[0], *place)):
        found = _Append(operation)
        shown = [item for item in found.shown if found.place != tuple(place) or item[0] < end]
        rank -= len(shown)
        for offset in range(len(shown) - 1, -1, -1):
            index, payload = shown[offset]
            for entry in found.entry(rank + offset, index, payload):
                yield entry, payload


def ranked(
    conn: sqlite3.Connection, session: int, count: int, positions: Iterable[Position]
) -> Iterator[Entry]:
    """Yield the entries at these positions, which must be sorted latest first. Ranks are computed
    by counting the items of the operations between two positions, without reading the items."""
    above: Place | None = None
    first = count
    for place, group in groupby(positions, key=lambda position: position[:-1]):
        found = _append_at(conn, session, place)
        if found is None:
            continue
        first -= _between(conn, session, found.place, above)
        above = found.place
        shown = {
            index: (first + offset, payload) for offset, (index, payload) in enumerate(found.shown)
        }
        for *_, index in group:
            if index in shown:
                rank, payload = shown[index]
                yield from found.entry(rank, index, payload)


def _between(conn: sqlite3.Connection, session: int, place: Place, above: Place | None) -> int:
    """Count the items from a place on, up to but not including the place ``above``."""
    below = "" if above is None else f"AND ({PLACE}) < (?, ?, ?, ?, ?, ?)"
    (count,) = conn.execute(
        f"SELECT coalesce(sum(live), 0) FROM ops WHERE {SHOWN} "
        f"AND ({PLACE}) >= (?, ?, ?, ?, ?, ?) {below}",
        (session, *place, *(above or ())),
    ).fetchone()
    return int(count)


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


def entries(
    conn: sqlite3.Connection, session_id: str, limit: int | None, before: Entry | None = None
) -> list[Entry]:
    """Return the latest ``limit`` entries (None: all), oldest first; with ``before``, of those that
    precede this entry."""
    # The limit counts only items that can be decoded, as in `get_items`.
    rows = (
        entries_backwards(conn, session_id)
        if before is None
        else _preceding(conn, session_id, before)
    )
    found = [entry for entry, _ in islice(rows, limit)]
    found.reverse()
    return found


def turns(conn: sqlite3.Connection, session_id: str, limit: int | None) -> list[Turn]:
    """Return the latest ``limit`` turns (None: all), oldest first. The cost depends only on the
    number of items in these turns."""
    found: list[list[Entry]] = []
    for entry, _ in entries_backwards(conn, session_id):
        if not found or found[-1][-1].turn != entry.turn:
            if limit is not None and len(found) >= limit:
                break
            found.append([])
        found[-1].append(entry)
    return [Turn(turn[0].turn, tuple(reversed(turn))) for turn in reversed(found)]


def turns_backwards(conn: sqlite3.Connection, session_id: str) -> Iterator[list[Any]]:
    """Yield the items of each turn in their order, the latest turn first."""
    for _, group in groupby(entries_backwards(conn, session_id), key=lambda row: row[0].turn):
        items = [entry.item for entry, _ in group]
        items.reverse()
        yield items


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
            found = find_operation(conn, row[0], (writer, counter))
            if found is not None:
                standing.add((*found.place, index))
        entries = {
            (entry.writer, entry.counter, entry.index): entry
            for entry in ranked(conn, row[0], row[1], sorted(standing, reverse=True))
        }
    return [entries[position] for position in wanted if position in entries]
