"""Application of operations to a session. Local writes and pulled pages use the same code.

After each operation the tables equal the state of the reference model
(`tests/property/reference_model.py`), in whatever order operations arrive. A late operation costs
as much as an operation at the end of the history.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from cached_session.history.frontier import Frontier
from cached_session.history.ops import (
    GONE,
    Dot,
    ItemRef,
    Kind,
    Operation,
    decode_clear,
    decode_mark,
    decode_pop,
)
from cached_session.history.session_ref import SessionRef
from cached_session.journal.sqlite.codec import codec_of
from cached_session.journal.sqlite.tracked_connection import count_history_change
from cached_session.journal.tables.calls import STORE as STORE_CALL
from cached_session.journal.tables.calls import call_rows
from cached_session.journal.tables.frontier_tables import FrontierTables, KnownWriter
from cached_session.journal.tables.marks import store_mark
from cached_session.journal.tables.remove_items import OperationRow, operation_row, remove_items
from cached_session.journal.tables.sessions import stored_id
from cached_session.journal.tables.states import ACKED, PLACE

__all__ = ["Applied", "SessionTransaction"]

RARE = ("above", "cleared", "popped", "holes", "parts")
"""Tables in which most sessions have no row."""
BEGIN = (
    "SELECT id, stamp, last_writer, revision, "
    + ", ".join(f"EXISTS (SELECT 1 FROM {table} WHERE session = s.id)" for table in RARE)
    + " FROM sessions s WHERE session_id = ?"
)


@dataclass
class Applied:
    """Counts of the operations that one transaction has received."""

    new: int = 0
    known: int = 0
    conflicts: int = 0
    items: int = 0
    """Change in the number of visible items."""


class SessionTransaction(FrontierTables):
    """Applies operations to one session inside one transaction. `finish` writes the buffered rows.

    Create an instance for each transaction, because it caches the rows that the transaction has
    read. A write may pass its instance on to the next write (`writes.LastWrite`).
    """

    def __init__(
        self,
        conn: sqlite3.Connection,
        session: int,
        key: str,
        *,
        stamp: int = 0,
        last_writer: str = "",
        revision: int = 0,
        has_rows: dict[str, bool],
    ) -> None:
        """Use the values of the session's row. Callers use `begin` or `create`."""
        super().__init__(conn, session, has_rows)
        self.key = key
        """The hash of the session's id."""
        self.stamp = stamp
        """The largest stamp of the applied operations."""
        self.last_writer = last_writer
        """The writer of the operation that was applied last."""
        self.revision = revision
        """The session's revision. `finish` increases it by one."""
        self.applied = Applied()
        self.author = ""
        """The writer id of this process, once a write has checked that the id is not retired; else
        empty."""
        self._ops: list[tuple[object, ...]] = []
        self._items: list[tuple[object, ...]] = []
        self._calls: list[tuple[object, ...]] = []

    @classmethod
    def begin(cls, conn: sqlite3.Connection, session_id: str) -> SessionTransaction | None:
        """Return a transaction on a session; None if the journal has no row of the session."""
        row = conn.execute(BEGIN, (stored_id(session_id),)).fetchone()
        if row is None:
            return None
        session, stamp, last_writer, revision, *has_rows = row
        return cls(
            conn,
            session,
            SessionRef.of(session_id).key,
            stamp=stamp,
            last_writer=last_writer,
            revision=revision,
            has_rows=dict(zip(RARE, has_rows, strict=True)),
        )

    @classmethod
    def create(cls, conn: sqlite3.Connection, session_id: str, now_ms: int) -> SessionTransaction:
        """Return a transaction on a session; add the session to the journal if it is new."""
        known = cls.begin(conn, session_id)
        if known is not None:
            return known
        row = conn.execute(
            "INSERT INTO sessions (session_id, created_ms) VALUES (?, ?)",
            (stored_id(session_id), now_ms),
        )
        # Sessions are never deleted, so no table has a row with this session number yet.
        has_rows = dict.fromkeys((*RARE, "frontier"), False)
        return cls(conn, row.lastrowid or 0, SessionRef.of(session_id).key, has_rows=has_rows)

    # -- applying --------------------------------------------------------------------------------

    def apply(
        self,
        op: Operation,
        *,
        state: int = ACKED,
        codecs: Sequence[int] | None = None,
        digest: str | None = None,
        own: bool = False,
    ) -> bool:
        """Apply one complete operation; return False if the journal already has a row with its dot.

        If that row has other content, change nothing and count a conflict.

        Raises:
            ValueError: the payload cannot be decoded; nothing was changed.
        """
        writer, counter = op.dot
        known = self.writer(writer)
        digest = digest or op.digest(self.key)
        is_known = counter in known.applied
        if is_known and self.seen(op.dot, digest):
            return False
        live = self._effect(op, known, codecs, state, own)
        size = sum(map(len, op.payloads))
        body = None if op.kind is Kind.APPEND else op.payloads[0]
        head = (self.session, op.kind.value, *op.turn_key, op.stamp, *op.dot, op.said_ms)
        counts = (len(op.payloads), live, size, op.private, digest, state, body)
        self._ops.append((*head, *counts, op.branch, op.key_id, op.version))
        self.advance(writer, counter)
        for table in ("holes", "parts"):
            if self.has(table):
                self.conn.execute(
                    f"DELETE FROM {table} WHERE session = ? AND writer = ? AND counter = ?",
                    (self.session, writer, counter),
                )
        self.stamp = max(self.stamp, op.stamp)
        if own or not is_known:
            # A pruned operation that arrives again neither ends nor continues a run.
            self.last_writer = writer
        self.applied.new += 1
        return True

    def seen(self, dot: Dot, digest: str) -> bool:
        """Return whether the journal has a row for an operation of the frontier. If so, count the
        operation as known or as a conflict.

        The frontier also contains operations without a row, which no replica needs any more. Such
        an operation may still arrive. A row with another digest counts as a conflict.
        """
        self.flush()
        row = self.conn.execute(
            "SELECT digest FROM ops WHERE session = ? AND writer = ? AND counter = ?",
            (self.session, *dot),
        ).fetchone()
        if row is None:
            return False
        if row[0] != digest:
            # Count a conflict once, however often a page with the operation is pulled.
            self.applied.conflicts += self.conn.execute(
                "UPDATE ops SET conflicted = 1 WHERE session = ? AND writer = ? AND counter = ? "
                "AND NOT conflicted",
                (self.session, *dot),
            ).rowcount
        else:
            self.applied.known += 1
        return True

    def _effect(
        self, op: Operation, known: KnownWriter, codecs: Sequence[int] | None, state: int, own: bool
    ) -> int:
        if op.kind is Kind.APPEND:
            return self._append(op, known, codecs)
        self.flush()
        if op.kind is Kind.MARK:
            if not op.key_id:
                # The journal keeps and forwards an encrypted mark, but cannot read it.
                store_mark(self.conn, self.session, op, decode_mark(op.payloads[0]))
        elif op.kind is Kind.POP:
            self._pop(decode_pop(op.payloads[0]), op.dot if own else None)
        else:
            covered = decode_clear(op.payloads[0])
            self._clear(covered, op.dot if own else None)
            if state == ACKED:
                self.acknowledge_clear(covered)
        return 0

    def _append(self, op: Operation, known: KnownWriter, codecs: Sequence[int] | None) -> int:
        if codecs is None:
            codecs = [codec_of(payload) if payload else 0 for payload in op.payloads]
        hidden = set(self.popped(op.dot))
        if hidden:
            self.conn.execute(
                "DELETE FROM popped WHERE session = ? AND writer = ? AND counter = ?",
                (self.session, *op.dot),
            )
        if op.dot.counter in known.cleared:
            hidden = set(range(len(op.payloads)))
        hidden |= {index for index, payload in enumerate(op.payloads) if payload == GONE}
        place = (*op.turn_key, op.stamp, *op.dot)
        shown = [
            (self.session, *place, index, payload, codec)
            for index, (payload, codec) in enumerate(zip(op.payloads, codecs, strict=True))
            if index not in hidden
        ]
        live = len(shown)
        if live:
            self._items += shown
            self._calls += call_rows(self.session, place, [row[-2] for row in shown])
        self.applied.items += live
        return live

    def _pop(self, ref: ItemRef, by: Dot | None) -> None:
        op = operation_row(self.conn, self.session, ref.dot)
        if op is not None:
            self._remove(op, ref.dot, ref.index, by)
            return
        self.conn.execute(
            "INSERT OR IGNORE INTO popped VALUES (?, ?, ?, ?, ?)",
            (self.session, *ref.dot, ref.index, ref.count),
        )
        self.mark("popped")
        self.advance(ref.dot.writer)

    def _clear(self, covered: Frontier, by: Dot | None) -> None:
        for writer in covered.writers():
            known = self.writer(writer)
            known.cleared_changed = True
            for first, last in covered.ranges(writer):
                known.cleared.add(first, last)
            self.advance(writer)
        # Query `items`, not `ops`: most rows of `ops` may have no visible items any more.
        shown = self.conn.execute(
            f"SELECT DISTINCT {PLACE} FROM items WHERE session = ? ORDER BY session, {PLACE}",
            (self.session,),
        ).fetchall()
        for *turn, stamp, writer, counter in shown:
            if (writer, counter) in covered:
                dot = Dot(writer, counter)
                op = operation_row(self.conn, self.session, dot)
                place = (*turn, stamp, *dot)
                self._remove(op or OperationRow(None, place, ACKED, None), dot, None, by)

    def is_last(self, op: Operation) -> bool:
        """Return whether no visible item is after an append that this transaction applies."""
        if op.turn is None:
            # The append opens a turn. Its stamp is the largest, or it continues the run with the
            # largest stamp.
            return True
        later = self.conn.execute(
            f"SELECT 1 FROM items WHERE session = ? AND ({PLACE}) > (?, ?, ?, ?, ?, ?) LIMIT 1",
            (self.session, *op.turn_key, op.stamp, *op.dot),
        )
        return later.fetchone() is None

    def withdraw(self, dot: Dot) -> None:
        """Remove the items of a dropped operation, without a pop or clear that removes them."""
        self.flush()
        op = operation_row(self.conn, self.session, dot)
        if op is not None:
            self._remove(op, dot, None, None)

    def _remove(self, op: OperationRow, dot: Dot, index: int | None, by: Dot | None) -> None:
        self.applied.items -= remove_items(self.conn, self.session, op, dot, index, by)

    # -- writing back ----------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the buffered rows, so that later queries in this transaction read them."""
        if self._ops:
            self.conn.executemany(
                f"INSERT INTO ops (session, kind, {PLACE}, said_ms, count, live, bytes, private, "
                "digest, state, body, branch, key_id, version) "
                f"VALUES ({', '.join('?' * 19)})",
                self._ops,
            )
            self._ops.clear()
        if self._items:
            self.conn.executemany(f"INSERT INTO items VALUES ({', '.join('?' * 10)})", self._items)
            self._items.clear()
        if self._calls:
            self.conn.executemany(STORE_CALL, self._calls)
            self._calls.clear()
        super().flush()

    def finish(self) -> Applied:
        """Write the buffered rows and the session's row; return the counts.

        The search index is updated later.
        """
        self.flush()
        count_history_change(self.conn)
        self.revision += 1
        applied, self.applied = self.applied, Applied()
        self.conn.execute(
            "UPDATE sessions SET stamp = ?, last_writer = ?, items = items + ?, "
            "revision = revision + 1, conflicts = conflicts + ? WHERE id = ?",
            (self.stamp, self.last_writer, applied.items, applied.conflicts, self.session),
        )
        return applied
