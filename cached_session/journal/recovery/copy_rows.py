"""Copy of all rows that can be read from an old journal to a new one.

Each copied operation has its original dot and state, so sending it again has no effect. The report
describes the rows that could not be read. The next pull fetches the unreadable rows that the server
has.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace

from cached_session.history.ops import Dot, ItemRef
from cached_session.history.session_name import quoted_name
from cached_session.journal.recovery import row_check
from cached_session.journal.recovery.read_damaged import (
    OperationRow,
    decode_or_keep,
    read_rows,
    read_session_ids,
    scan_operations,
)
from cached_session.journal.recovery.rebuild_operation import RebuiltOperation, rebuild_operation
from cached_session.journal.recovery.report import Losses, RecoveryReport, write_report
from cached_session.journal.tables import writes
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.meta import write_meta
from cached_session.journal.tables.states import ACKED, BY_DOT

__all__ = ["WriterIds", "copy_journal"]

OPERATIONS_A_FLUSH = 500
"""Maximum number of operations that are applied before their effect on the session is written."""
LOCAL_TABLES = ("claims", "forgets")
"""Tables other than `ops` that the server cannot restore: unresolved claims, and memories that the
server still has to delete."""


@dataclass(frozen=True)
class WriterIds:
    """The writer id that this process used in the old file, and its writer id for the new file."""

    retired: str
    fresh: str


def copy_journal(
    old: sqlite3.Connection, new: sqlite3.Connection, report: RecoveryReport, writers: WriterIds
) -> RecoveryReport:
    """Apply every readable operation of ``old`` to ``new``; return the completed report.

    The function uses the open transaction of ``new``, or begins one. Existing rows of ``new`` do
    not change. The report is also stored in ``new``.

    If some items of an unsent batch are lost, the others are copied, and pops for the lost items
    are recorded under the fresh writer id, so that no replica waits for them.
    """
    factory, old.text_factory = old.text_factory, decode_or_keep
    own_transaction = not new.in_transaction
    if own_transaction:
        new.execute("BEGIN IMMEDIATE")
    try:
        report = _copy(old, new, report, writers)
        if own_transaction:
            new.execute("COMMIT")
    except BaseException:
        if own_transaction and new.in_transaction:
            new.execute("ROLLBACK")
        raise
    finally:
        old.text_factory = factory
    return report


def _copy(
    old: sqlite3.Connection, new: sqlite3.Connection, report: RecoveryReport, writers: WriterIds
) -> RecoveryReport:
    losses = Losses()
    session_ids = read_session_ids(old, losses)
    author = writes.Author(writers.fresh, report.at_ms, 0)
    copier = _OperationCopier(old, new, author, losses)
    copier.copy_all(session_ids)
    for table in LOCAL_TABLES:
        _copy_table(old, new, table, session_ids, losses)
    _copy_meta(old, new, losses)
    digests = f"; digests computed again: {copier.digests}" if copier.digests else ""
    report = replace(
        report,
        why=f"{report.why}{digests}",
        operations=copier.operations,
        unsent=copier.unsent,
        lost=tuple(losses.named),
        lost_more=losses.more,
    )
    write_report(new, report)
    # Operations of the old writer id may be lost, so its next counter is unknown. Retire the id.
    write_meta(new, **{f"{writes.RETIRED}{writers.retired}": ""})
    return report


class _OperationCopier:
    """Applies the operations of the old journal to the new one, and counts them."""

    def __init__(
        self,
        old: sqlite3.Connection,
        new: sqlite3.Connection,
        author: writes.Author,
        losses: Losses,
    ) -> None:
        self.operations = 0
        self.unsent = 0
        self.digests = 0
        """The number of digests that were damaged and computed again."""
        self._old = old
        self._new = new
        self._author = author
        self._losses = losses
        self._session_id = ""
        self._tx: SessionTransaction | None = None

    def copy_all(self, session_ids: dict[int, str]) -> None:
        """Copy every operation whose session is known."""
        for number, row in enumerate(scan_operations(self._old, self._losses)):
            session_id = session_ids.get(row.session)
            if session_id is None:
                self._losses.add(
                    f"operation {row.writer}:{row.counter} of a session whose id cannot be read"
                )
                continue
            if number % OPERATIONS_A_FLUSH == 0:
                self._finish()
            self._copy(row, session_id)
        self._finish()

    def _copy(self, row: OperationRow, session_id: str) -> None:
        tx = self._begin(session_id)
        if _is_known(tx, row):
            return
        found = rebuild_operation(self._old, row, self._losses)
        if found is None or (found.state == ACKED and found.is_incomplete):
            # The next pull fetches an acknowledged operation, with all its payloads, from the
            # server.
            return
        if not tx.apply(found.operation, state=found.state, digest=found.digest):
            return
        self.operations += 1
        self.unsent += found.state != ACKED
        self.digests += found.digest is None
        if found.error is not None:
            tx.flush()
            self._new.execute(
                f"UPDATE ops SET error = ? WHERE {BY_DOT}",
                (found.error, tx.session, *found.operation.dot),
            )
        if found.lost:
            self._pop_lost(found, session_id)

    def _begin(self, session_id: str) -> SessionTransaction:
        if self._tx is None or self._session_id != session_id:
            self._finish()
            self._tx = SessionTransaction.create(self._new, session_id, self._author.now_ms)
            self._session_id = session_id
        return self._tx

    def _finish(self) -> None:
        if self._tx is not None:
            self._tx.finish()
            self._tx = None

    def _pop_lost(self, found: RebuiltOperation, session_id: str) -> None:
        """Record a pop for each lost item."""
        self._finish()
        dot, count = found.operation.dot, len(found.operation.payloads)
        for index in found.lost:
            self._losses.add(
                f"item {index} of operation {dot.writer}:{dot.counter} in session "
                f"{quoted_name(session_id)}"
            )
            writes.pop_ref(self._new, self._author, session_id, ItemRef(dot, index, count))


def _is_known(tx: SessionTransaction, row: OperationRow) -> bool:
    """Return whether the new journal already has the operation of a row. The payloads of a known
    operation need not be read."""
    if not (
        isinstance(row.writer, str) and type(row.counter) is int and isinstance(row.digest, str)
    ):
        return False
    if row.counter not in tx.writer(row.writer).applied:
        return False
    return tx.seen(Dot(row.writer, row.counter), row.digest)


def _copy_table(
    old: sqlite3.Connection,
    new: sqlite3.Connection,
    table: str,
    session_ids: dict[int, str],
    losses: Losses,
) -> None:
    """Copy the valid rows of a table whose first column is the session's row number."""
    sql = f"SELECT {row_check.row_condition(table)}, * FROM {table}"
    for is_valid, number, *rest in read_rows(old, sql, table, losses):
        if not is_valid or any(isinstance(cell, bytes) for cell in rest):
            losses.add(f"a row of table {table}")
            continue
        session_id = session_ids.get(number)
        tx = None if session_id is None else SessionTransaction.begin(new, session_id)
        if tx is not None:
            marks = ", ".join("?" * (len(rest) + 1))
            new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", (tx.session, *rest))


def _copy_meta(old: sqlite3.Connection, new: sqlite3.Connection, losses: Losses) -> None:
    """Copy the URL of the server that acknowledged the operations, and the import marks. Without
    its mark, a source would be imported twice."""
    copied = "key = 'server' OR (key >= 'import:' AND key < 'import;')"
    sql = f"SELECT key, value FROM meta WHERE {copied}"
    for key, value in read_rows(old, sql, "meta", losses):
        if not row_check.is_meta_row(key, value):
            losses.add(f"the meta row {key!r:.80}")
        elif key == "server":
            write_meta(new, server=value)
        else:
            new.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
