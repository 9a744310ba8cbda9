"""Compaction: deletes obsolete operations and returns free space in small transactions, so that no
write waits for long.

An append is obsolete if a clear hides all its items, the server has acknowledged the append, and
the server has deleted its memories. If the append arrives again, the table `cleared` hides it. Pops
and clears are not deleted, because their memories stay on the server and an audit needs the rows to
restore lost memories.
"""

from __future__ import annotations

import sqlite3

from cached_session.journal.journal import Journal
from cached_session.journal.recovery import schema_check
from cached_session.journal.tables import search_index
from cached_session.journal.tables.states import BY_DOT
from cached_session.models import CompactReport

__all__ = ["compact", "prune", "tidy"]

PRUNE_OPS = 1000
"""Maximum number of operations that one transaction deletes. Such a transaction takes a few
milliseconds."""
RECLAIM_PAGES = 256
"""Maximum number of free pages that one transaction returns to the file system: 1 MiB."""
REBUILD_BYTES = 64 * 1024 * 1024
"""Maximum size in bytes of a journal that is rebuilt as a whole. All writes wait for the rebuild.
Only a journal whose `INCREMENTAL` mode is off is rebuilt, because its free pages cannot be returned
one by one. A larger journal without this mode reuses its free pages."""
INCREMENTAL = 2
"""Value of ``PRAGMA auto_vacuum`` in a file whose free pages can be returned."""


def prune(conn: sqlite3.Connection, most: int) -> int:
    """Delete at most ``most`` obsolete operations; return their number.

    An operation that is not acknowledged is not deleted, even if this journal never sent it. A copy
    of this journal may have sent the operation. The row of the operation delays the deletion of its
    memories until the operation has arrived. The last operation of the journal is not deleted
    either, so that its `seq` is not used again.
    """
    gone = conn.execute(
        "SELECT a.session, a.writer, a.counter, a.seq FROM cleared c CROSS JOIN acked a "
        "ON a.session = c.session AND a.writer = c.writer "
        "AND a.counter BETWEEN c.first AND c.last CROSS JOIN ops o ON o.seq = a.seq "
        "WHERE o.kind = 'append' AND o.live = 0 AND o.seq < (SELECT max(seq) FROM ops) "
        "AND NOT EXISTS (SELECT 1 FROM forgets f WHERE f.session = a.session "
        "AND f.writer = a.writer AND f.counter = a.counter) "
        "AND NOT EXISTS (SELECT 1 FROM claims k WHERE k.session = a.session "
        "AND k.writer = a.writer AND k.counter = a.counter) LIMIT ?",
        (most,),
    ).fetchall()
    conn.executemany("DELETE FROM ops WHERE seq = ?", [(seq,) for *_, seq in gone])
    conn.executemany(f"DELETE FROM acked WHERE {BY_DOT}", [row[:3] for row in gone])
    return len(gone)


async def tidy(journal: Journal) -> int:
    """Do one step of a compaction, in the background; return the number of deleted operations."""
    pruned = await journal.write(prune, PRUNE_OPS)
    await journal.write(_reclaim)
    return pruned


async def compact(journal: Journal) -> CompactReport:
    """Delete all obsolete operations, return free space to the file system, and rebuild a damaged
    search index.

    Raises:
        JournalError: the journal cannot be written. The rows deleted so far stay deleted.
        JournalCorrupt: the journal is damaged. Nothing was deleted, and the next call starts the
        recovery.
    """
    if not journal.in_memory:
        await journal.read_long(lambda conn, _: _look(conn))
    before, _ = await journal.read(_pages)
    operations = 0
    while True:
        pruned = await journal.write(prune, PRUNE_OPS)
        operations += pruned
        if pruned < PRUNE_OPS:
            break
    await journal.write(search_index.rebuild_if_damaged)
    if not journal.in_memory:
        await journal.maintain(_rebuild)
        while await journal.write(_reclaim):
            pass
        await journal.maintain(_shorten)
    after, free = await journal.read(_pages)
    return CompactReport(operations, before, after, free)


def _look(conn: sqlite3.Connection) -> None:
    for problem in schema_check.index_problems(conn):
        raise sqlite3.DatabaseError(f"database disk image is malformed: {problem}")


def _pages(conn: sqlite3.Connection) -> tuple[int, int]:
    """Return the size of the file and the size of its free pages, in bytes."""
    size, count, free = (
        int(conn.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_size", "page_count", "freelist_count")
    )
    return size * count, size * free


def _reclaim(conn: sqlite3.Connection) -> bool:
    """Return up to `RECLAIM_PAGES` free pages to the file system. The result is True if more pages
    may be free."""
    (before,) = conn.execute("PRAGMA freelist_count").fetchone()
    if not before:
        return False
    # Fetch all rows: SQLite frees one page of the file for each row that is fetched.
    conn.execute(f"PRAGMA incremental_vacuum({RECLAIM_PAGES})").fetchall()
    (after,) = conn.execute("PRAGMA freelist_count").fetchone()
    return bool(0 < after < before)


def _rebuild(conn: sqlite3.Connection) -> None:
    """Rebuild a file whose `INCREMENTAL` mode is off, so that its free pages can be returned."""
    (mode,) = conn.execute("PRAGMA auto_vacuum").fetchone()
    size, free = _pages(conn)
    if mode != INCREMENTAL and free and size <= REBUILD_BYTES:
        conn.execute("PRAGMA auto_vacuum = INCREMENTAL")
        conn.execute("VACUUM")


def _shorten(conn: sqlite3.Connection) -> None:
    """Copy the write-ahead log into the file, so that the file shrinks. A reader in another
    process may delay the shrinking until the next checkpoint."""
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
