"""Removal of visible items: from the history, the full-text index, and later from the server."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from cached_session.history.ops import Dot
from cached_session.journal.tables import search_index
from cached_session.journal.tables.states import AGAIN, BY_PLACE, PENDING, PLACE, SENT

__all__ = ["OperationRow", "operation_row", "remove_items"]


class OperationRow(NamedTuple):
    """The columns of an operation's row that a removal needs."""

    seq: int | None
    """The row's number; None if damage to the file has removed the row but not the operation's
    items."""
    place: tuple[object, ...]
    """The values of the columns `PLACE`."""
    state: int
    error: str | None


def operation_row(conn: sqlite3.Connection, session: int, dot: Dot) -> OperationRow | None:
    """Return the row of an operation; None if the journal has no such row."""
    row = conn.execute(
        f"SELECT seq, state, error, {PLACE} FROM ops "
        "WHERE session = ? AND writer = ? AND counter = ?",
        (session, *dot),
    ).fetchone()
    if row is None:
        return None
    seq, state, error, *place = row
    return OperationRow(seq, tuple(place), state, error)


def remove_items(
    conn: sqlite3.Connection,
    session: int,
    op: OperationRow,
    dot: Dot,
    index: int | None,
    by: Dot | None,
) -> int:
    """Remove the visible items of an operation, or the item at ``index``; return their number.

    ``by`` is the operation of this journal that removes the items; None if another replica has
    removed them. After ``by`` is acknowledged, a push deletes the memories of the items from the
    server.
    """
    where = BY_PLACE
    key: tuple[object, ...] = (session, *op.place)
    if index is not None:
        where, key = f"{where} AND idx = ?", (*key, index)
    if by is None and (op.state in (PENDING, SENT) or op.error == AGAIN):
        # Another replica has removed an item that this journal has not sent yet, sends again after
        # a lost answer, or sent again before it received the removal. Queue the deletion of the
        # memories, which would otherwise stay on the server forever.
        by = Dot("", 0)
    if by is not None:
        conn.execute(
            "INSERT OR IGNORE INTO forgets SELECT session, writer, counter, idx, "
            f"part_count(CAST(payload AS BLOB)), ?, ? FROM items WHERE {where}",
            (*by, *key),
        )
    indexed = _document(conn, session, op)
    removed = conn.execute(f"DELETE FROM items WHERE {where}", key).rowcount
    if removed:
        if indexed is not None:
            search_index.remove(conn, [indexed])
            left = _document(conn, session, op)
            search_index.add(conn, [left] if left is not None else [])
        conn.execute(
            "UPDATE ops SET live = live - ? WHERE session = ? AND writer = ? AND counter = ?",
            (removed, session, *dot),
        )
    return removed


def _document(conn: sqlite3.Connection, session: int, op: OperationRow) -> tuple[int, str] | None:
    """Return the search document of an operation; None if the operation is not indexed."""
    reached = search_index.reach(conn)
    if reached is None or op.seq is None or op.seq > reached:
        return None
    payloads = conn.execute(
        f"SELECT CAST(payload AS BLOB) FROM items WHERE {BY_PLACE} ORDER BY idx",
        (session, *op.place),
    ).fetchall()
    if not payloads:
        return None
    texts = [payload.decode(errors="replace") for (payload,) in payloads]
    return op.seq, search_index.document(session, texts)
