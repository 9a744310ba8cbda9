"""Functions that read the payloads of an append in a damaged journal file."""

from __future__ import annotations

import json
import sqlite3
from typing import Any, NamedTuple

from cached_session.history.ops import GONE
from cached_session.journal.recovery.read_damaged import (
    OperationRow,
    raise_if_transient,
    read_row,
    read_rows,
)
from cached_session.journal.recovery.report import Losses
from cached_session.journal.tables.payloads import SEPARATOR
from cached_session.journal.tables.states import BY_DOT

__all__ = ["Payloads", "read_payloads"]

BY_PLACE = (
    "session = ? AND turn_stamp = ? AND turn_writer = ? AND turn_counter = ? "
    "AND stamp = ? AND writer = ? AND counter = ?"
)
BY_STAMP = f"stamp = ? AND {BY_DOT}"
ITEMS = "SELECT idx, CAST(payload AS BLOB) FROM items"


class Payloads(NamedTuple):
    """The payloads of an append in a damaged file."""

    texts: list[str]
    """`GONE` replaces lost payloads and payloads that were removed before the damage."""
    lost: list[int]
    """The indexes of the payloads that were lost."""
    is_placed: bool = True
    """False if the items have another place in the history than the operation, which means that a
    cell of the place is damaged."""


def read_payloads(conn: sqlite3.Connection, row: OperationRow) -> Payloads:
    """Return the payloads of an append."""
    texts = [GONE] * row.count
    live = row.live if type(row.live) is int else 0
    is_placed = True
    if row.has_items:
        rows, unread = _read_items(conn, row)
        if row.has_turn and not (rows or unread) and live:
            rows, unread = _read_elsewhere(conn, row)
            is_placed = not rows
    else:
        rows, unread = _split_body(row), []
    found = 0
    for index, payload in rows:
        if type(index) is not int or not 0 <= index < row.count:
            continue
        try:
            text = (payload or b"").decode()
            json.loads(text)
        except (ValueError, RecursionError):
            # A damaged text does not match its writer's seal: no other replica would accept it.
            unread.append(index)
            continue
        texts[index] = text
        found += 1
    if found >= live:
        return Payloads(texts, [], is_placed)
    # If every row could be read, nothing shows which of the missing items were lost and which were
    # removed. Report all of them.
    lost = unread or [index for index, text in enumerate(texts) if text == GONE]
    return Payloads(texts, lost, is_placed)


def _split_body(row: OperationRow) -> list[tuple[int, bytes]]:
    """Return the index and the payload of each item in the body of an append; an empty list if the
    body does not have the right number of payloads."""
    body = row.body.encode() if isinstance(row.body, str) else row.body
    payloads = body.split(SEPARATOR.encode()) if isinstance(body, bytes) else []
    if len(payloads) != row.count:
        return []
    return [(index, text) for index, text in enumerate(payloads) if text.strip()]


def _read_items(
    conn: sqlite3.Connection, row: OperationRow
) -> tuple[list[tuple[Any, ...]], list[int]]:
    """Return the (index, payload) rows of an append, and the indexes of rows with damage."""
    # The conditions include the turn and the stamp, so that SQLite finds the rows by their primary
    # key.
    where, key = BY_PLACE, (row.session, *row.place)
    if not row.has_turn:
        where, key = BY_STAMP, (row.stamp, row.session, row.writer, row.counter)
    sql = f"{ITEMS} WHERE {where}"
    try:
        return conn.execute(sql, key).fetchall(), []
    except sqlite3.DatabaseError as error:
        raise_if_transient(error)
    rows: list[tuple[Any, ...]] = []
    unread: list[int] = []
    for index in range(row.count):
        try:
            found = read_row(conn, f"{sql} AND idx = ?", (*key, index))
        except sqlite3.DatabaseError as error:
            raise_if_transient(error)
            unread.append(index)
            continue
        if found is not None:
            rows.append(found)
    return rows, unread


def _read_elsewhere(
    conn: sqlite3.Connection, row: OperationRow
) -> tuple[list[tuple[Any, ...]], list[int]]:
    """Return the result of `_read_items` for an append whose turn is damaged, in the row of the
    append or in the rows of its items. Read the rows of the session up to the first damage."""
    key = (row.stamp, row.session, row.writer, row.counter)
    return read_rows(conn, f"{ITEMS} WHERE {BY_STAMP}", "items", Losses(), key), []
