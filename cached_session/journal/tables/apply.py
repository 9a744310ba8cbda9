"""Application of operations to a session. Local writes and pulled pages use the same code.

After each operation the tables equal the state of the reference model
(`tests/property/reference_model.py`), in whatever order operations arrive. A late operation costs
as much as an operation at the end of the history.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
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
from cached_session.journal.tables.dots import find_operation, find_state
from cached_session.journal.tables.frontier_tables import FrontierTables, KnownWriter
from cached_session.journal.tables.marks import store_mark
from cached_session.journal.tables.new_rows import NewRows
from cached_session.journal.tables.remove_items import remove_items
from cached_session.journal.tables.sessions import session_ids, stored_id
from cached_session.journal.tables.states import ACKED, ORDERED, PLACE, SHOWN
from cached_session.journal.tables.unfolded import UNFOLDED_MOST, read_unfolded

__all__ = ["Applied", "SessionTransaction", "fold_sessions"]

RARE = ("above", "cleared", "popped", "holes", "parts")
"""Tables in which most sessions have no row."""
BEGIN = (
    "SELECT id, stamp, last_writer, revision, "
    + ", ".join(f"EXISTS (SELECT 1 FROM {table} WHERE session = s.id)" for table in RARE)
    + ", EXISTS (SELECT 1 FROM frontier WHERE session = s.id AND behind = 1)"
    " FROM sessions s WHERE session_id = ?"
)
BEHIND = (
    "SELECT session_id FROM sessions s WHERE id = ? "
    "AND EXISTS (SELECT 1 FROM frontier WHERE session = s.id AND behind = 1)"
)


@dataclass
class Applied:
    """Counts of the operations that one transaction has received."""

    new: int = 0
    known: int = 0
    conflicts: int = 0
    items: int = 0
    """Change in the number of visible items of the main branch."""


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
        self.stored = (stamp, last_writer)
        """The largest stamp and the last writer in the session's row. `finish_append` does not
        write this row."""
        self._unfolded_appends = 0
        self._unfolded_items = 0
        self._is_derivable = False
        """True if the rows of the session and of the writer follow from the last append."""
        self._rows = NewRows(conn, session)

    @classmethod
    def begin(cls, conn: sqlite3.Connection, session_id: str) -> SessionTransaction | None:
        """Return a transaction on a session; None if the journal has no row of the session."""
        row = conn.execute(BEGIN, (stored_id(session_id),)).fetchone()
        if row is None:
            return None
        session, stamp, last_writer, revision, *has_rows, is_behind = row
        tx = cls(
            conn,
            session,
            SessionRef.of(session_id).key,
            stamp=stamp,
            last_writer=last_writer,
            revision=revision,
            has_rows=dict(zip(RARE, has_rows, strict=True)),
        )
        if is_behind:
            tx._load_unfolded()
        return tx

    def _load_unfolded(self) -> None:
        for found in read_unfolded(self.conn, self.session):
            known = self.writer(found.writer)
            known.changed = True
            if found.appends:
                known.applied.add(known.applied.contiguous_end() + 1, found.last)
                known.last_ms = found.last_ms
                known.unfolded = found.appends
                self._unfolded_appends += found.appends
                self._unfolded_items += found.items
                self.revision += found.appends

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
        codec = 0
        if op.kind is Kind.APPEND:
            codec = max(
                codecs if codecs is not None else map(codec_of, filter(None, op.payloads)),
                default=0,
            )
        hidden = self._effect(op, known, state, own)
        self._rows.add(op, digest, codec, state, hidden)
        self.advance(writer, counter)
        self._is_derivable = not (hidden or op.branch or known.applied.contiguous_end() != counter)
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
        found = find_state(self.conn, self.session, dot)
        if found is None:
            return False
        row = self.conn.execute("SELECT digest FROM ops WHERE seq = ?", found[:1]).fetchone()
        if row is None or row[0] != digest:
            # Count a conflict once, however often a page with the operation is pulled.
            self.applied.conflicts += self.conn.execute(
                "UPDATE ops SET conflicted = 1 WHERE seq = ? AND NOT conflicted", found[:1]
            ).rowcount
        else:
            self.applied.known += 1
        return True

    def _effect(self, op: Operation, known: KnownWriter, state: int, own: bool) -> set[int]:
        """Apply the effect of an operation; return the indexes of the hidden items of an append."""
        if op.kind is Kind.APPEND:
            return self._append(op, known)
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
        return set()

    def _append(self, op: Operation, known: KnownWriter) -> set[int]:
        hidden = set(self.popped(op.dot)).intersection(range(len(op.payloads)))
        if hidden:
            self.conn.execute(
                "DELETE FROM popped WHERE session = ? AND writer = ? AND counter = ?",
                (self.session, *op.dot),
            )
        if op.dot.counter in known.cleared:
            hidden = set(range(len(op.payloads)))
        hidden |= {index for index, payload in enumerate(op.payloads) if payload == GONE}
        if not op.branch:
            self.applied.items += len(op.payloads) - len(hidden)
        return hidden

    def _pop(self, ref: ItemRef, by: Dot | None) -> None:
        if self.remove(ref.dot, ref.index, by):
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
        # The index `place` has only the operations with visible items. Most rows of `ops` may have
        # none.
        shown = self.conn.execute(
            f"SELECT writer, counter FROM ops WHERE session = ? AND live > 0 ORDER BY {ORDERED}",
            (self.session,),
        ).fetchall()
        for writer, counter in shown:
            if (writer, counter) in covered:
                self.remove(Dot(writer, counter), None, by)

    def is_last(self, op: Operation) -> bool:
        """Return whether no visible item is after an append that this transaction applies."""
        if op.turn is None:
            # The append opens a turn. Its stamp is the largest, or it continues the run with the
            # largest stamp.
            return True
        later = self.conn.execute(
            f"SELECT 1 FROM ops WHERE {SHOWN} AND ({PLACE}) > (?, ?, ?, ?, ?, ?) LIMIT 1",
            (self.session, *op.turn_key, op.stamp, *op.dot),
        )
        return later.fetchone() is None

    def is_claimed(self, writer: str) -> bool:
        """Return whether a clear of another replica covers the next counter of an own writer, or
        operations that this writer has never written.

        A replica that has the clear would hide the next operation of this writer.
        """
        known = self.writer(writer)
        last = known.applied.contiguous_end()
        if last + 1 in known.cleared:
            return True
        return last in known.cleared and find_state(self.conn, self.session, (writer, last)) is None

    def remove(self, dot: Dot, index: int | None, by: Dot | None) -> bool:
        """Remove one item (None: all items) of an operation; return False if the journal does not
        have the operation. ``by`` is the own operation that removes the items; None if another
        replica has removed them, or if the operation is dropped."""
        self.flush()
        op = find_operation(self.conn, self.session, dot)
        if op is None:
            return False
        removed = remove_items(self.conn, self.session, op, dot, index, by)
        if not op.branch:
            self.applied.items -= removed
        return True

    # -- writing back ----------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the buffered rows, so that later queries in this transaction read them."""
        self._rows.insert()
        self.fold()

    def fold(self) -> None:
        """Write the unfolded appends of the session into its row and the rows of its writers."""
        if self._unfolded_appends:
            self.conn.execute(
                "UPDATE sessions SET items = items + ?, revision = revision + ? WHERE id = ?",
                (self._unfolded_items, self._unfolded_appends, self.session),
            )
            self._unfolded_appends = self._unfolded_items = 0
        for writer, known in self._known.items():
            if known.behind and writer != self.last_writer:
                # Only the last writer can continue its run without a write of the other rows.
                known.behind, known.changed = False, True
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
            "revision = ?, conflicts = conflicts + ? WHERE id = ?",
            (
                self.stamp,
                self.last_writer,
                applied.items,
                self.revision,
                applied.conflicts,
                self.session,
            ),
        )
        self.stored = (self.stamp, self.last_writer)
        return applied

    def finish_append(self, writer: str) -> None:
        """Write an append of this process like `finish`. Write only the rows of the append if the
        other rows follow from it (tables/unfolded.py)."""
        known = self.writer(writer)
        is_derived = (
            self._is_derivable
            and known.behind
            and known.unfolded < UNFOLDED_MOST
            and self.stored == (self.stamp, self.last_writer)
            and (known.stored_run, writer) == (self.stamp, self.last_writer)
            and known.run_stamp == known.stored_run
        )
        if not is_derived:
            known.behind = known.changed = True
            self.finish()
            return
        self._rows.insert()
        count_history_change(self.conn)
        known.unfolded += 1
        self._unfolded_appends += 1
        self._unfolded_items += self.applied.items
        self.applied = Applied()
        self.revision += 1


def fold_sessions(conn: sqlite3.Connection, numbers: Iterable[int]) -> None:
    """Write the unfolded appends of these sessions into the rows of the sessions and their writers.

    Call this function before a change of the table `waiting`, from which the unfolded appends are
    known.
    """
    for number in set(numbers):
        row = conn.execute(BEHIND, (number,)).fetchone()
        if row is not None:
            (session_id,) = session_ids([row])
            tx = SessionTransaction.begin(conn, session_id)
            if tx is not None:
                tx.fold()
