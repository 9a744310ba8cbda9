"""Rows of new operations, which are collected in memory and inserted together."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from cached_session.history.ops import Kind, Operation
from cached_session.journal.tables.calls import STORE as STORE_CALL
from cached_session.journal.tables.calls import call_rows
from cached_session.journal.tables.payloads import join_payloads
from cached_session.journal.tables.states import ACKED, PLACE

__all__ = ["NewRows"]

STORE = (
    f"INSERT INTO ops (seq, session, kind, {PLACE}, said_ms, count, live, bytes, private, "
    "digest, codec, body, branch, key_id, version) "
    f"VALUES ({', '.join('?' * 20)})"
)
STORE_WAITING = (
    "INSERT INTO waiting (session, writer, counter, seq, count, state) VALUES (?, ?, ?, ?, ?, ?)"
)
STORE_ACKED = "INSERT INTO acked VALUES (?, ?, ?, ?)"


class NewRows:
    """The rows of the operations that one transaction adds to a session."""

    def __init__(self, conn: sqlite3.Connection, session: int) -> None:
        self._conn = conn
        self._session = session
        self._seq: int | None = None
        """The `seq` of the last operation of the journal; None until it is read."""
        self._ops: list[tuple[object, ...]] = []
        self._waiting: list[tuple[object, ...]] = []
        self._acked: list[tuple[object, ...]] = []
        self._calls: list[tuple[int, int, int]] = []

    def add(
        self, op: Operation, digest: str, codec: int, state: int, hidden: Iterable[int]
    ) -> None:
        """Add an operation. ``hidden`` has the indexes of the items of an append that are not
        visible."""
        if self._seq is None:
            (self._seq,) = self._conn.execute("SELECT coalesce(max(seq), 0) FROM ops").fetchone()
        self._seq += 1
        live: int = 0
        body: str | None = op.payloads[0]
        if op.kind is Kind.APPEND:
            live, body = self._add_append(op, self._seq, set(hidden))
        size = sum(map(len, op.payloads))
        place = (*op.turn_key, op.stamp, *op.dot)
        counts = (len(op.payloads), live, size, op.private, digest, codec, body)
        head = (self._seq, self._session, op.kind.value)
        self._ops.append((*head, *place, op.said_ms, *counts, op.branch, op.key_id, op.version))
        if state == ACKED:
            self._acked.append((self._session, *op.dot, self._seq))
        else:
            self._waiting.append((self._session, *op.dot, self._seq, len(op.payloads), state))

    def _add_append(self, op: Operation, seq: int, hidden: set[int]) -> tuple[int, str | None]:
        """Add the calls of an append; return the number of its visible items and its body."""
        if len(hidden) == len(op.payloads):
            return 0, None
        shown = [text for index, text in enumerate(op.payloads) if index not in hidden]
        self._calls += call_rows(self._session, seq, shown)
        return len(shown), join_payloads(op.payloads, hidden)

    def insert(self) -> None:
        """Insert the rows."""
        for statement, rows in (
            (STORE, self._ops),
            (STORE_WAITING, self._waiting),
            (STORE_ACKED, self._acked),
            (STORE_CALL, self._calls),
        ):
            if rows:
                self._conn.executemany(statement, rows)
                rows.clear()
