"""What a session call writes: each function is the body of one transaction."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cached_session.errors import JournalError
from cached_session.history.clock import next_run
from cached_session.history.ops import (
    Dot,
    ItemRef,
    Kind,
    Operation,
    clear_payload,
    pop_payload,
)
from cached_session.journal.apply import PENDING, SessionTransaction
from cached_session.journal.codec import decode_rows
from cached_session.journal.tails import Appended, seen

__all__ = ["RETIRED", "Author", "append", "clear", "last_item", "pop", "pop_ref", "remove"]

RETIRED = "retired:"
"""Before a writer id in `meta`: another journal file was here when it was in use."""

log = logging.getLogger("cached_session.journal")


@dataclass(frozen=True)
class Author:
    """Who writes, and when: fixed by the caller so that a repeated job writes the same."""

    writer: str
    now_ms: int
    run_gap_ms: int


def append(
    conn: sqlite3.Connection,
    author: Author,
    session_id: str,
    encoded: Sequence[tuple[str, int]],
    *,
    private: bool,
) -> Appended:
    """Append a batch of items as one operation.

    The items are the last of the history: their stamp is larger than any seen here, or goes on in
    a run into which nothing has come since.
    """
    tx = SessionTransaction.create(conn, session_id, author.now_ms)
    payloads = tuple(text for text, _ in encoded)
    op = _operation(tx, author, Kind.APPEND, payloads, private)
    tx.apply(op, state=PENDING, codecs=[codec for _, codec in encoded], own=True)
    tx.finish()
    return Appended(tx.revision, seen(conn))


def pop(conn: sqlite3.Connection, author: Author, session_id: str) -> tuple[bytes, int] | None:
    """Remove the latest item; its row, or None where there is none."""
    tx = SessionTransaction.begin(conn, session_id)
    found = last_item(conn, tx) if tx is not None else None
    if tx is None or found is None:
        return None
    ref, row = found
    _pop(tx, author, ref)
    return row


def pop_ref(conn: sqlite3.Connection, author: Author, session_id: str, ref: ItemRef) -> None:
    """Record the pop of one named item, visible or not."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is not None:
        _pop(tx, author, ref)


def remove(
    conn: sqlite3.Connection, author: Author, session_id: str, places: Iterable[tuple[Dot, int]]
) -> int:
    """Record the pop of each of these items that is visible; how many were."""
    removed = 0
    for dot, index in places:
        tx = SessionTransaction.begin(conn, session_id)
        if tx is None:
            break
        row = conn.execute(
            "SELECT count FROM items JOIN ops USING (session, writer, counter) "
            "WHERE session = ? AND writer = ? AND counter = ? AND idx = ?",
            (tx.session, *dot, index),
        ).fetchone()
        if row is not None:
            _pop(tx, author, ItemRef(dot, index, row[0]))
            removed += 1
    return removed


def _pop(tx: SessionTransaction, author: Author, ref: ItemRef) -> None:
    op = _operation(tx, author, Kind.POP, (pop_payload(ref),), private=False)
    tx.apply(op, state=PENDING, own=True)
    tx.finish()


def last_item(
    conn: sqlite3.Connection, tx: SessionTransaction, skip: frozenset[tuple[Dot, int]] = frozenset()
) -> tuple[ItemRef, tuple[bytes, int]] | None:
    """The latest item that can be decoded and is neither claimed nor in ``skip``."""
    rows = conn.execute(
        "SELECT writer, counter, idx, CAST(payload AS BLOB), codec FROM items WHERE session = ? "
        "ORDER BY session DESC, stamp DESC, writer DESC, counter DESC, idx DESC",
        (tx.session,),
    )
    for writer, counter, index, payload, codec in rows:
        dot = Dot(writer, counter)
        if (dot, index) in skip or not decode_rows([(payload, codec)]):
            continue
        claimed = conn.execute(
            "SELECT 1 FROM claims WHERE session = ? AND writer = ? AND counter = ? AND idx = ?",
            (tx.session, writer, counter, index),
        ).fetchone()
        if claimed:
            continue
        (count,) = conn.execute(
            "SELECT count FROM ops WHERE session = ? AND writer = ? AND counter = ?",
            (tx.session, writer, counter),
        ).fetchone()
        return ItemRef(dot, index, count), (payload, codec)
    return None


def clear(conn: sqlite3.Connection, author: Author, session_id: str) -> None:
    """Remove everything that this journal has applied to the session. Where nothing is visible
    there is nothing that an operation could say, and none is written."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return
    (items,) = conn.execute("SELECT items FROM sessions WHERE id = ?", (tx.session,)).fetchone()
    if not items:
        return
    op = _operation(tx, author, Kind.CLEAR, (clear_payload(tx.unsettled()),), private=False)
    tx.apply(op, state=PENDING, own=True)
    tx.finish()


def _operation(
    tx: SessionTransaction, author: Author, kind: Kind, payloads: tuple[str, ...], private: bool
) -> Operation:
    if tx.conn.execute("SELECT 1 FROM meta WHERE key = ?", (RETIRED + author.writer,)).fetchone():
        # Its counters may be lost in part: to take one twice would be two operations of one name.
        raise JournalError(
            "the journal was replaced in the middle of this call: nothing was stored, try again"
        )
    mine = tx.writer(author.writer)
    run = next_run(
        now_ms=author.now_ms,
        highest_seen=tx.stamp,
        current=mine.run_stamp or None,
        last_was_mine=tx.last_writer == author.writer,
        last_ms=mine.last_ms,
        gap_ms=author.run_gap_ms,
    )
    mine.run_stamp, mine.last_ms = run.stamp, author.now_ms
    dot = Dot(author.writer, mine.applied.upto() + 1)
    return Operation(dot, kind, run.stamp, author.now_ms, payloads, private)
