"""Recovery of a journal file that was damaged, deleted or replaced by another file.

A damaged file is replaced only after a second, separate connection has found the damage too. A file
stays in place if it is locked, is not a journal, has a newer format, or is on a failing disk.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from cached_session.errors import JournalCorrupt
from cached_session.journal.recovery import replace_file, schema_check
from cached_session.journal.recovery.copy_rows import WriterIds, copy_journal
from cached_session.journal.recovery.find_damage import find_damage
from cached_session.journal.recovery.report import RecoveryReport, read_report, write_report
from cached_session.journal.sqlite.db_errors import is_damage, is_transient
from cached_session.journal.sqlite.file_identity import FileId, file_id, lock_names
from cached_session.journal.tables import schema
from cached_session.journal.tables.meta import read_meta

__all__ = ["Connect", "copy_to_replacement", "recover_file"]

Connect = Callable[[str], sqlite3.Connection]


def recover_file(
    path: str,
    why: str,
    timeout: float,
    connect: Connect,
    writers: WriterIds,
    own: sqlite3.Connection | None = None,
) -> RecoveryReport | None:
    """Replace a damaged journal file by a new one with all rows that can be read.

    Return None if the file is not damaged: another process has already replaced it, or the
    suspicion was wrong. The swap happens under the write lock of the old file. Other processes that
    have that file open compare its identity before they commit, and so notice the swap.

    Args:
        path: The journal's path.
        why: The error that led to the suspicion, for the report.
        timeout: Seconds to wait for locks.
        connect: Opens a new journal file.
        writers: The old and the new writer id of this process.
        own: A connection that has the file open. Its page cache may have pages that a new
            connection can no longer read.

    Raises:
        JournalError: another process is replacing the file.
        JournalCorrupt: the file cannot be moved.
        sqlite3.Error: the file is locked, or the disk failed or is full. The file stays in place.
    """
    real = os.path.realpath(path)
    try:
        with lock_names(path, timeout):
            replace_file.undo_interrupted_swap(real)
            damage = find_damage(real, path, timeout) if Path(real).exists() else None
            if damage is None:
                return None
            return _recover(real, f"{why} ({damage})", timeout, connect, writers, own)
    except OSError as error:
        raise JournalCorrupt(
            f"the journal {path} is damaged ({why}) and could not be replaced: {error}; "
            "make its directory writable, or move the file away"
        ) from error


def _recover(
    real: str,
    why: str,
    timeout: float,
    connect: Connect,
    writers: WriterIds,
    own: sqlite3.Connection | None,
) -> RecoveryReport:
    now_ms = time.time_ns() // 1_000_000
    set_aside = replace_file.name_for_damaged(real, now_ms)
    report = RecoveryReport(now_ms, why, _source(file_id(real)), set_aside=set_aside)
    old = sqlite3.connect(real, timeout=timeout, isolation_level=None)
    try:
        # This setting lets SQLite read as much as possible of a shortened file or a damaged schema.
        old.execute("PRAGMA writable_schema = ON")
        try:
            # Take the write lock: no other process may commit to the old file any more.
            old.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            # The file is too damaged to be locked. If another process still commits to it, that
            # process copies its operations to the new file later: see `copy_to_replacement`.
        is_restored = _restore_schema(old, real)
        sources = [old] if own is None else [old, own] if is_restored else [own, old]
        report = _build_new_file(real, sources, report, connect, writers)
    except BaseException:
        old.close()
        raise
    replace_file.never_close(old)
    try:
        replace_file.swap(real, set_aside)
    finally:
        if old.in_transaction:
            old.execute("ROLLBACK")
    return report


def _restore_schema(old: sqlite3.Connection, real: str) -> bool:
    """Repair a damaged schema inside the current transaction, which the caller rolls back. Return
    whether the schema was damaged and was repaired."""
    try:
        if old.in_transaction and schema.identify(old, real) and not schema_check.is_complete(old):
            schema_check.restore_schema(old)
            return True
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if is_transient(error):
            raise
        # The schema cannot be restored. The copy continues with the tables that can be read without
        # it.
    return False


def _build_new_file(
    real: str,
    sources: list[sqlite3.Connection],
    report: RecoveryReport,
    connect: Connect,
    writers: WriterIds,
) -> RecoveryReport:
    """Create the complete new file, without a log."""
    replace_file.discard_partial_file(real)
    with closing(connect(replace_file.partial_path(real))) as new:
        schema.prepare(new, real)
        report = copy_journal(sources, new, report, writers)
        # Closing the connection would also empty the log, but would not report a failure.
        (busy, *_) = new.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise sqlite3.OperationalError("database is locked")
    replace_file.mark_complete(real)
    return report


def copy_to_replacement(
    old: sqlite3.Connection,
    new: sqlite3.Connection,
    file: FileId | None,
    path: str,
    writers: WriterIds,
) -> RecoveryReport:
    """Copy the rows of the open file to the file that has its name now; return the report.

    Args:
        old: A connection to the file that was open when it lost its name.
        new: A connection to the file that has the name.
        file: The identity of the old file.
        path: The journal's path.
        writers: The old and the new writer id of this process.
    """
    new.execute("BEGIN IMMEDIATE")
    try:
        known = read_report(read_meta(new))
        why = f"{path} was deleted or replaced while it was open"
        report = RecoveryReport(time.time_ns() // 1_000_000, why, _source(file))
        report = copy_journal([old], new, report, writers)
        if known is not None and known.source == report.source:
            # Another process has recovered the same file. Keep its report, and add the operations
            # that this process wrote after the other process had read the file.
            report = replace(
                known,
                operations=known.operations + report.operations,
                unsent=known.unsent + report.unsent,
            )
            write_report(new, report)
        new.execute("COMMIT")
    except BaseException:
        if new.in_transaction:
            new.execute("ROLLBACK")
        raise
    return report


def _source(file: FileId | None) -> str:
    return "{}:{}".format(*file) if file else "?"
