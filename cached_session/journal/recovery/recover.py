"""A journal that is damaged or was taken away: what can be read of it goes on in a fresh file.

Here is how one file takes the place of another; what goes over, row by row, is `carry`'s. The old
file is kept beside the journal.

Nothing is set aside on a suspicion: a connection of its own must find the damage once more. A file
that is locked, foreign, too new or on a failing disk stays where it is.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from cached_session.errors import JournalCorrupt
from cached_session.journal.recovery import row_check, schema_check
from cached_session.journal.recovery.copy_rows import (
    Salvage,
    Writers,
    carry,
    record,
    report_of,
)
from cached_session.journal.sqlite.db_errors import is_damage, is_transient
from cached_session.journal.sqlite.file_identity import (
    LOG_SUFFIXES,
    FileId,
    dated_name,
    file_id,
    lock_names,
)
from cached_session.journal.tables import schema
from cached_session.journal.tables.meta import read_meta

__all__ = [
    "Salvage",
    "Writers",
    "abandon",
    "follow",
    "is_unfinished",
    "mend",
    "report_of",
]

BUILDING, READY = ".salvaging", ".salvaged"
"""Beside the journal: the fresh file while it is filled; and when it is whole, until it takes the
journal's name."""
ASIDE = ".damaged-"
"""Between the journal's name and the moment at which the file was set aside."""
Connect = Callable[[str], sqlite3.Connection]


def is_unfinished(path: str) -> bool:
    """Whether a process died while it put a fresh journal in the place of another."""
    return file_id(os.path.realpath(path) + READY) is not None


def abandon(conn: sqlite3.Connection) -> None:
    """Never close this connection, not even at the end of the process.

    Its file is no longer the one of its name. SQLite deletes the log of the last connection by
    name: it would be that of the journal which now has the name.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(conn))


def mend(
    path: str,
    why: str,
    patience: float,
    connect: Connect,
    writers: Writers,
    own: sqlite3.Connection | None = None,
) -> Salvage | None:
    """Set a damaged journal aside and put a fresh one with all that can be read in its place.

    None if the file turns out to be whole: another process was quicker, or it was a false alarm.
    Other processes that have the old file open notice by its identity before they commit anything:
    the swap happens under the old file's write lock. ``own`` has had the file open, and may know of
    it what a new connection cannot read any more.

    Raises:
        JournalError: another process is at it; JournalCorrupt: it cannot be set aside here.
        sqlite3.Error: the file is locked, or the disk fails or is full: it stays where it is.
    """
    real = os.path.realpath(path)
    try:
        with lock_names(path, patience):
            _undo(real)
            found = _damage(real, path, patience) if Path(real).exists() else None
            if found is None:
                return None
            return _mend(real, f"{why} ({found})", patience, connect, writers, own)
    except OSError as error:
        raise JournalCorrupt(
            f"the journal {path} is damaged ({why}) and cannot be set aside here: {error}; "
            "make its directory writable, or move the file yourself"
        ) from error


def _undo(real: str) -> None:
    """A process died in the middle of a swap: the old file gets its log back, and all is done
    again. To go on with the fresh file instead would lose what others, who have the old one open,
    have written to it since."""
    ready = Path(real + READY)
    if not ready.exists():
        return
    for aside in _asides(real):
        for suffix in LOG_SUFFIXES:
            if Path(aside + suffix).exists():
                Path(aside + suffix).replace(real + suffix)
        Path(aside).unlink()
    ready.unlink()


def _damage(real: str, path: str, patience: float) -> str | None:
    """What is wrong with a journal of ours; None if nothing is."""
    with closing(sqlite3.connect(real, timeout=patience, isolation_level=None)) as conn:
        try:
            conn.execute("PRAGMA query_only = ON")
            (application,) = conn.execute("PRAGMA application_id").fetchone()
            (version,) = conn.execute("PRAGMA user_version").fetchone()
            if application != schema.APPLICATION_ID or version > schema.FORMAT:
                schema.identify(conn, path)
                return None
            if version < 1:
                return f"it names format {version}, which never was"
            found = [str(text) for (text,) in conn.execute("PRAGMA quick_check(3)")]
            if version == schema.FORMAT and not schema_check.is_whole(conn):
                return "its schema is not a journal's"
            if found == ["ok"] and version == schema.FORMAT:
                found = schema_check.misfits(conn) or row_check.nonsense(conn) or found
                # SQLite does not look at what is in a text.
                schema_check.read_all(conn)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if is_damage(error):
                return str(error)
            raise
    return None if found == ["ok"] else "; ".join(found).replace("\n", " ")


def _mend(
    real: str,
    why: str,
    patience: float,
    connect: Connect,
    writers: Writers,
    own: sqlite3.Connection | None,
) -> Salvage:
    now_ms = time.time_ns() // 1_000_000
    report = Salvage(now_ms, why, _source(file_id(real)), set_aside=dated_name(real, ASIDE, now_ms))
    old = sqlite3.connect(real, timeout=patience, isolation_level=None)
    try:
        # SQLite then reads what is there of a file that was cut short, and of a spoiled schema.
        old.execute("PRAGMA writable_schema = ON")
        try:
            # Whoever has it open must not commit to it any more.
            old.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            # Whoever can begin all the same carries over what they commit: see `follow`.
        is_restored = _restore(old)
        sources = [old] if own is None else [old, own] if is_restored else [own, old]
        report = _fill(real, sources, report, connect, writers)
    except BaseException:
        old.close()
        raise
    abandon(old)
    try:
        _swap(real, report.set_aside or real)
    finally:
        if old.in_transaction:
            old.execute("ROLLBACK")
    return report


def _restore(old: sqlite3.Connection) -> bool:
    """Whether its schema was spoiled, and is restored for as long as its transaction lasts."""
    try:
        if old.in_transaction and not schema_check.is_whole(old):
            schema_check.restore(old)
            return True
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        # What can be read of it without is carried over.
        if is_transient(error):
            raise
    return False


def _fill(
    real: str,
    sources: list[sqlite3.Connection],
    report: Salvage,
    connect: Connect,
    writers: Writers,
) -> Salvage:
    """Make the fresh file, whole and without a log, with all that can be read of the old one."""
    building = real + BUILDING
    for suffix in ("", *LOG_SUFFIXES):
        Path(building + suffix).unlink(missing_ok=True)
    with closing(connect(building)) as new:
        schema.prepare(new, real)
        for old in sources:
            found = carry(old, new, replace(report, operations=0, unsent=0), writers)
            report = replace(
                found,
                operations=report.operations + found.operations,
                unsent=report.unsent + found.unsent,
                lost=tuple(dict.fromkeys((*report.lost, *found.lost))),
                lost_more=report.lost_more + found.lost_more,
            )
            record(new, report)
            if not found.lost:
                break
        # Closing would do it too, and would not say if it failed.
        (busy, *_) = new.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise sqlite3.OperationalError("database is locked")
    for suffix in LOG_SUFFIXES:
        Path(building + suffix).unlink(missing_ok=True)
    Path(building).replace(real + READY)
    return report


def _asides(real: str) -> list[str]:
    """Other names of the journal's own file, given to set it aside."""
    prefix = f"{Path(real).name}{ASIDE}"
    file = file_id(real)
    found = [str(one) for one in Path(real).parent.iterdir() if one.name.startswith(prefix)]
    return [name for name in found if not name.endswith(LOG_SUFFIXES) and file_id(name) == file]


def _swap(real: str, aside: str) -> None:
    """Put the fresh file in the place of the damaged one. The name is never without a file.

    The old log goes first, and for certain: found beside the fresh file it would be taken for its
    own. Whoever dies in between leaves the fresh file under `READY`: see `_undo`.
    """
    os.link(real, aside)
    for suffix in LOG_SUFFIXES:
        if Path(real + suffix).exists():
            Path(real + suffix).replace(aside + suffix)
    _sync_directory(real)
    Path(real + READY).replace(real)
    _sync_directory(real)


def _sync_directory(real: str) -> None:
    directory = os.open(Path(real).parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _source(file: FileId | None) -> str:
    return "{}:{}".format(*file) if file else "?"


def follow(
    old: sqlite3.Connection,
    new: sqlite3.Connection,
    file: FileId | None,
    path: str,
    writers: Writers,
) -> Salvage:
    """Another file has the journal's name: carry over what the open one holds; the report."""
    new.execute("BEGIN IMMEDIATE")
    try:
        known = report_of(read_meta(new))
        why = f"{path} was deleted or replaced while it was open"
        report = Salvage(time.time_ns() // 1_000_000, why, _source(file))
        report = carry(old, new, report, writers)
        if known is not None and known.source == report.source:
            # Another process has mended it. What was written here after it had read the old file
            # has now been carried over as well.
            report = replace(
                known,
                operations=known.operations + report.operations,
                unsent=known.unsent + report.unsent,
            )
            record(new, report)
        new.execute("COMMIT")
    except BaseException:
        if new.in_transaction:
            new.execute("ROLLBACK")
        raise
    return report
