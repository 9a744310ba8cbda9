"""Copy of all rows that can be read from an old journal to a new one.

Each copied operation has its original dot and state, so sending it again has no effect. The report
describes the rows that could not be read. The next pull fetches the unreadable rows that the server
has. The copy never records a removal because of damage: a removal would apply to every replica.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cached_session.history.ids import session_key
from cached_session.history.ops import GONE, Dot, Kind, Operation
from cached_session.history.session_name import quoted_name
from cached_session.history.turns import TurnChoice
from cached_session.journal.recovery import row_check
from cached_session.journal.recovery.read_damaged import (
    OperationRow,
    decode_or_keep,
    read_rows,
    read_session_ids,
    read_unsent,
    scan_operations,
)
from cached_session.journal.recovery.rebuild_operation import RebuiltOperation, rebuild_operation
from cached_session.journal.recovery.report import Losses, RecoveryReport, write_report
from cached_session.journal.sqlite.codec import codec_of
from cached_session.journal.tables import writes
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.meta import write_meta
from cached_session.journal.tables.states import ACKED, BY_DOT, SENT

__all__ = ["WriterIds", "copy_journal"]

OPERATIONS_A_FLUSH = 500
"""Maximum number of operations that are applied before their effect on the session is written."""
RESCUED = "rescued:"
"""Prefix of the keys in `meta` that name the damaged operations whose items were written again."""
LOCAL_TABLES = ("claims", "forgets")
"""Tables other than `ops` that the server cannot restore: unresolved claims, and memories that the
server still has to delete."""


@dataclass(frozen=True)
class WriterIds:
    """The writer id that this process used in the old file, and its writer id for the new file."""

    retired: str
    fresh: str


def copy_journal(
    sources: Sequence[sqlite3.Connection],
    new: sqlite3.Connection,
    report: RecoveryReport,
    writers: WriterIds,
) -> RecoveryReport:
    """Apply every intact operation of ``sources`` to ``new``; return the completed report.

    A further source is read only if rows of the earlier sources could not be read. The function
    uses the open transaction of ``new``, or begins one. Existing rows of ``new`` do not change. The
    report is also stored in ``new``.

    A damaged operation is not copied under its dot, because other replicas may have the intact
    operation. If the server may have the operation, the next pull fetches it. Otherwise the items
    that can be read are written as a new operation under the fresh writer id.
    """
    own_transaction = not new.in_transaction
    if own_transaction:
        new.execute("BEGIN IMMEDIATE")
    try:
        report = _copy(sources, new, report, writers)
        if own_transaction:
            new.execute("COMMIT")
    except BaseException:
        if own_transaction and new.in_transaction:
            new.execute("ROLLBACK")
        raise
    return report


def _copy(
    sources: Sequence[sqlite3.Connection],
    new: sqlite3.Connection,
    report: RecoveryReport,
    writers: WriterIds,
) -> RecoveryReport:
    copier = _OperationCopier(new, writes.Author(writers.fresh, report.at_ms, 0))
    named: dict[str, None] = {}
    more = 0
    for old in sources:
        losses = Losses()
        factory, old.text_factory = old.text_factory, decode_or_keep
        try:
            session_ids = read_session_ids(old, losses)
            copier.copy_all(old, session_ids, losses)
            for table in LOCAL_TABLES:
                _copy_table(old, new, table, session_ids, losses)
            _copy_meta(old, new, losses)
        finally:
            old.text_factory = factory
        named.update(dict.fromkeys(losses.named))
        more += losses.more
        if not (losses.named or copier.damaged):
            break
    rescued = copier.rescue()
    named.update(dict.fromkeys(rescued.named))
    again = f"; operations written again: {copier.rescued}" if copier.rescued else ""
    report = replace(
        report,
        why=f"{report.why}{again}",
        operations=copier.operations,
        unsent=copier.unsent,
        lost=tuple(named),
        lost_more=more + rescued.more,
    )
    write_report(new, report)
    # Operations of the old writer id may be lost, so its next counter is unknown. Retire the id.
    write_meta(new, **{f"{writes.RETIRED}{writers.retired}": ""})
    return report


class _OperationCopier:
    """Applies the operations of old journals to the new one, and counts them."""

    def __init__(self, new: sqlite3.Connection, author: writes.Author) -> None:
        self.operations = 0
        self.unsent = 0
        self.rescued = 0
        """The number of operations that were written again because they were damaged."""
        self.damaged: dict[tuple[str, Dot], RebuiltOperation] = {}
        """The damaged operations that the new journal does not have, by session and dot."""
        self._new = new
        self._author = author
        self._session_id = ""
        self._tx: SessionTransaction | None = None

    def copy_all(
        self, old: sqlite3.Connection, session_ids: dict[int, str], losses: Losses
    ) -> None:
        """Copy every intact operation whose session is known."""
        seen = set[object]()
        for number, row in enumerate(scan_operations(old, losses)):
            seen.add(row.seq)
            if row.session == 0:
                continue  # a dropped operation
            session_id = session_ids.get(row.session)
            if session_id is None:
                losses.add(
                    f"operation {row.writer}:{row.counter} of a session whose id cannot be read"
                )
                continue
            if number % OPERATIONS_A_FLUSH == 0:
                self._finish()
            self._copy(old, row, session_id, losses)
        self._finish()
        if losses.named:
            self._name_unsent(old, session_ids, seen, losses)

    def _name_unsent(
        self,
        old: sqlite3.Connection,
        session_ids: dict[int, str],
        seen: set[object],
        losses: Losses,
    ) -> None:
        """Add a loss for each unsent operation whose row could not be read."""
        for seq, number, writer, counter in read_unsent(old):
            session_id = session_ids.get(number)
            if seq not in seen and session_id is not None:
                tx = self._begin(session_id)
                if counter not in tx.writer(writer).applied:
                    losses.add(
                        f"unsent operation {writer}:{counter} in session {quoted_name(session_id)}"
                    )
        self._finish()

    def _copy(
        self, old: sqlite3.Connection, row: OperationRow, session_id: str, losses: Losses
    ) -> None:
        tx = self._begin(session_id)
        if _is_known(tx, row):
            return
        found = rebuild_operation(old, row, tx.key, losses)
        if found is None:
            return
        name = (session_id, found.operation.dot)
        if not found.is_exact:
            before = self.damaged.get(name)
            if before is None or len(found.lost) < len(before.lost):
                self.damaged[name] = found
            return
        if not tx.apply(found.operation, state=found.state, digest=found.digest):
            return
        self.damaged.pop(name, None)
        self.operations += 1
        self.unsent += found.state != ACKED
        if found.error is not None:
            tx.flush()
            self._new.execute(
                f"UPDATE waiting SET error = ? WHERE {BY_DOT}",
                (found.error, tx.session, *found.operation.dot),
            )

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

    def rescue(self) -> Losses:
        """Write the readable items of damaged appends as new operations; return what is lost.

        The server may have an operation that was sent. Only the next pull can tell, so such an
        operation is not written again.
        """
        losses = Losses()
        for (session_id, dot), found in self.damaged.items():
            where = f"of operation {dot.writer}:{dot.counter} in session {quoted_name(session_id)}"
            if found.state == ACKED:
                continue
            if found.state == SENT or found.operation.kind is not Kind.APPEND:
                losses.add(f"the content {where}, unless the server has it")
                continue
            for index in found.lost:
                losses.add(f"item {index} {where}")
            if self._begin_rescue(session_id, dot):
                self._write_again(session_id, found.operation)
        return losses

    def _begin_rescue(self, session_id: str, dot: Dot) -> bool:
        """Return whether no process has written the items of a damaged operation again. Record that
        this process does."""
        key = f"{RESCUED}{session_key(session_id)}:{dot.writer}:{dot.counter}"
        return bool(self._new.execute("INSERT OR IGNORE INTO meta VALUES (?, '')", (key,)).rowcount)

    def _write_again(self, session_id: str, op: Operation) -> None:
        encoded = [(text, codec_of(text)) for text in op.payloads if text != GONE]
        if encoded:
            choice = TurnChoice(block=op.turn_key)
            writes.append(
                self._new, self._author, session_id, encoded, private=op.private, choice=choice
            )
            self.operations += 1
            self.unsent += 1
            self.rescued += 1


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
    for number, *rest in read_rows(old, f"SELECT * FROM {table}", table, losses):
        session_id = session_ids.get(number)
        tx = None if session_id is None else SessionTransaction.begin(new, session_id)
        if tx is None:
            continue
        marks = ", ".join("?" * (len(rest) + 1))
        try:
            new.execute(f"INSERT INTO {table} VALUES ({marks})", (tx.session, *rest))
        except sqlite3.IntegrityError as error:
            if "UNIQUE" not in str(error):
                losses.add(f"a row of table {table}")


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
