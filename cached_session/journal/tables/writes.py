"""The writes of session calls: append, pop, remove, clear and mark. Each function is the body of
one transaction."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cached_session.errors import JournalError
from cached_session.history.clock import next_run
from cached_session.history.ops import (
    Dot,
    ItemRef,
    Kind,
    Mark,
    Operation,
    TurnKey,
    encode_clear,
    encode_mark,
    encode_pop,
)
from cached_session.history.turns import TurnChoice
from cached_session.journal.sqlite.codec import decode_rows
from cached_session.journal.sqlite.tracked_connection import Version, count_queued, version_of
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.calls import turn_of_calls
from cached_session.journal.tables.dots import find_operation
from cached_session.journal.tables.item_rows import payloads_of
from cached_session.journal.tables.payloads import visible_payloads
from cached_session.journal.tables.states import PENDING, SHOWN, backwards

__all__ = [
    "RETIRED",
    "Author",
    "LastWrite",
    "Popped",
    "Written",
    "append",
    "clear",
    "last_item",
    "pop",
    "pop_ref",
    "remove",
    "write_mark",
]

RETIRED = "retired:"
"""Prefix of the keys in `meta` that list writer ids which must not be used again."""

NEW_TURN = TurnChoice()
"""The choice of an append that opens a new turn."""

log = logging.getLogger("cached_session.journal")


@dataclass(frozen=True)
class Author:
    """The writer id and time of a write. The caller sets both once, so that a repeated transaction
    uses the same values."""

    writer: str
    now_ms: int
    run_gap_ms: int
    renew: Callable[[str], str] | None = None
    """A function that gives this process another writer id than the given one, and returns it."""


class Written(NamedTuple):
    """The state of a session after a write, for caches. Valid once the write is committed."""

    session_id: str
    tx: SessionTransaction
    revision: int
    version: Version
    """The version of all histories after the commit, if no other write in the commit changes a
    history."""
    changes: int
    """The number of rows that the connection had changed in total after the write, as SQLite counts
    them."""
    turn: TurnKey | None
    """The turn of an append; None for other writes."""
    is_last: bool
    """True if the items of an append are the last of the history. False if a later turn exists."""


class LastWrite:
    """The result of the last append or pop, so that the next write need not read the session.

    The result is valid until another transaction is committed. `take` removes the result, so that a
    transaction that is rolled back leaves no invalid result. An instance is safe to use from
    several threads: a thread that finds no result queries the journal.
    """

    def __init__(self) -> None:
        self._last: Written | None = None

    def forget(self) -> None:
        """Discard the result, because another file has replaced the journal."""
        self._last = None

    def keep(self, written: Written) -> None:
        """Store the result of a committed write."""
        self._last = written

    def take(self, conn: sqlite3.Connection, session_id: str) -> SessionTransaction | None:
        """Remove the stored result and return its transaction; None if no valid result is
        stored."""
        last, self._last = self._last, None
        if last is None or last.session_id != session_id or last.changes != conn.total_changes:
            return None
        return last.tx if last.version == version_of(conn) else None


class Popped(NamedTuple):
    """The result of a pop."""

    row: tuple[bytes, int]
    was_last: bool
    """True if the popped item was the last of the history. False if the item preceded
    items that cannot be popped, such as claimed items."""
    turn: TurnKey
    """The turn of the popped item."""
    written: Written


def append(
    conn: sqlite3.Connection,
    author: Author,
    session_id: str,
    encoded: Sequence[tuple[str, int]],
    *,
    private: bool,
    choice: TurnChoice = NEW_TURN,
    last: LastWrite | None = None,
) -> Written:
    """Append a batch of items as one operation.

    The items become the last items of their turn. Items of a new turn become the last items of the
    history: their stamp is larger than every stamp in the session, or continues a run that no other
    writer has interrupted.
    """
    tx = last.take(conn, session_id) if last is not None else None
    if tx is None:
        tx = SessionTransaction.create(conn, session_id, author.now_ms)
    payloads = tuple([text for text, _ in encoded])
    turn = choice.block
    if turn is None and choice.answers:
        turn = turn_of_calls(conn, tx.session, choice.answers)
    op = _operation(tx, author, Kind.APPEND, payloads, private, turn or choice.open)
    codecs = [codec for _, codec in encoded]
    tx.apply(op, state=PENDING, codecs=codecs, own=True)
    is_last = tx.is_last(op)
    tx.finish_append(op.dot.writer)
    count_queued(conn)
    return _written(session_id, tx, op.turn_key, is_last)


def pop(
    conn: sqlite3.Connection, author: Author, session_id: str, last: LastWrite | None = None
) -> Popped | None:
    """Pop the latest item; return None if no item can be popped."""
    tx = last.take(conn, session_id) if last is not None else None
    if tx is None:
        tx = SessionTransaction.begin(conn, session_id)
    found = last_item(conn, tx) if tx is not None else None
    if tx is None or found is None:
        return None
    _pop(tx, author, found.ref)
    return Popped(found.row, found.is_last, found.turn, _written(session_id, tx))


def _written(
    session_id: str, tx: SessionTransaction, turn: TurnKey | None = None, is_last: bool = True
) -> Written:
    version, changes = version_of(tx.conn), tx.conn.total_changes
    return Written(session_id, tx, tx.revision, version, changes, turn, is_last)


def pop_ref(conn: sqlite3.Connection, author: Author, session_id: str, ref: ItemRef) -> None:
    """Record the pop of one named item, visible or not."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is not None:
        _pop(tx, author, ref)


def remove(
    conn: sqlite3.Connection, author: Author, session_id: str, places: Iterable[tuple[Dot, int]]
) -> int:
    """Record a pop for each of these items that is visible; return the number of pops."""
    removed = 0
    for dot, index in places:
        tx = SessionTransaction.begin(conn, session_id)
        if tx is None:
            break
        op = find_operation(conn, tx.session, dot)
        if op is not None and index in [at for at, _ in payloads_of(conn, op.seq)]:
            _pop(tx, author, ItemRef(dot, index, op.payloads))
            removed += 1
    return removed


def _pop(tx: SessionTransaction, author: Author, ref: ItemRef) -> None:
    op = _operation(tx, author, Kind.POP, (encode_pop(ref),), private=False)
    tx.apply(op, state=PENDING, own=True)
    tx.finish()


class LastItem(NamedTuple):
    """The latest item that may be popped."""

    ref: ItemRef
    row: tuple[bytes, int]
    turn: TurnKey
    is_last: bool
    """True if no item of the history is after this item."""


LATEST = (
    "SELECT turn_stamp, turn_writer, turn_counter, writer, counter, CAST(body AS BLOB), codec, "
    f"count, live FROM ops WHERE {SHOWN} ORDER BY {backwards()}"
)


def last_item(
    conn: sqlite3.Connection, tx: SessionTransaction, skip: frozenset[tuple[Dot, int]] = frozenset()
) -> LastItem | None:
    """Return the latest item that can be decoded and is neither claimed nor in ``skip``."""
    claimed = {
        (Dot(writer, counter), index)
        for writer, counter, index in conn.execute(
            "SELECT writer, counter, idx FROM claims WHERE session = ?", (tx.session,)
        )
    }
    is_last = True
    for *turn, writer, counter, body, codec, count, live in conn.execute(LATEST, (tx.session,)):
        dot = Dot(writer, counter)
        for index, payload in reversed(visible_payloads(body, count, live)):
            if (
                (dot, index) not in claimed
                and (dot, index) not in skip
                and decode_rows([(payload, codec)])
            ):
                ref = ItemRef(dot, index, count)
                return LastItem(ref, (payload, codec), TurnKey(*turn), is_last)
            is_last = False
        is_last = False
    return None


def clear(conn: sqlite3.Connection, author: Author, session_id: str) -> None:
    """Remove all items that this journal has applied to the session. Write no operation if no item
    is visible."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return
    shown = f"SELECT 1 FROM ops WHERE {SHOWN} LIMIT 1"
    if conn.execute(shown, (tx.session,)).fetchone() is None:
        return
    op = _operation(tx, author, Kind.CLEAR, (encode_clear(tx.clear_frontier()),), private=False)
    tx.apply(op, state=PENDING, own=True)
    tx.finish()


def write_mark(conn: sqlite3.Connection, author: Author, session_id: str, mark: Mark) -> None:
    """Write a mark. The new mark replaces the mark with the same type and key on every device.

    Raises:
        ValueError: the mark is not valid, or too large.
    """
    payload = encode_mark(mark)
    tx = SessionTransaction.create(conn, session_id, author.now_ms)
    op = _operation(tx, author, Kind.MARK, (payload,), private=False)
    tx.apply(op, state=PENDING, own=True)
    tx.finish()
    count_queued(conn)


def _operation(
    tx: SessionTransaction,
    author: Author,
    kind: Kind,
    payloads: tuple[str, ...],
    private: bool,
    turn: TurnKey | None = None,
) -> Operation:
    if tx.author != author.writer:
        retired = RETIRED + author.writer
        if tx.conn.execute("SELECT 1 FROM meta WHERE key = ?", (retired,)).fetchone():
            # The new file may lack the last operations of this writer id. With the same id, a new
            # operation could get a counter that is already used.
            raise JournalError(
                "the journal was replaced in the middle of this call: nothing was stored, try again"
            )
        tx.author = author.writer
    writer = author.writer
    if author.renew is not None and tx.is_claimed(writer):
        writer = author.renew(writer)
    mine = tx.writer(writer)
    run = next_run(
        now_ms=author.now_ms,
        highest_seen=tx.stamp,
        current=mine.run_stamp or None,
        last_was_mine=tx.last_writer == writer,
        last_ms=mine.last_ms,
        gap_ms=author.run_gap_ms,
        turn_stamp=turn.stamp if turn else 0,
    )
    mine.run_stamp, mine.last_ms = run.stamp, author.now_ms
    dot = Dot(writer, mine.applied.contiguous_end() + 1)
    return Operation(dot, kind, run.stamp, author.now_ms, payloads, private, turn)
