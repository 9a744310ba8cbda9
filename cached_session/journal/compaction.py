"""What the journal may let go of, and the space that this frees: a little at a time, so that no
write waits for it.

An append of which nothing is visible, because a clear covers it, is bookkeeping that nothing needs
any more once the server has acknowledged it and has forgotten its memories: `cleared` goes on
hiding it, should it ever arrive again. Pops and clears stay, because their memories stay on the
server, and an audit puts back those that it loses.
"""

from __future__ import annotations

import sqlite3

from cached_session.journal.journal import Journal
from cached_session.journal.recovery import schema_check
from cached_session.journal.tables import search_index
from cached_session.journal.tables.states import ACKED
from cached_session.models import CompactReport

__all__ = ["compact", "prune", "tidy"]

PRUNE_OPS = 1000
"""Operations let go of in one transaction: some milliseconds."""
RECLAIM_PAGES = 256
"""Free pages given back in one transaction: 1 MiB."""
REBUILD_BYTES = 64 * 1024 * 1024
"""A journal from before free pages could be given back one by one is rebuilt as a whole if it is
no larger than this: writers wait meanwhile. A larger one uses its free pages again."""
INCREMENTAL = 2
"""What ``PRAGMA auto_vacuum`` says of a file whose free pages can be given back."""


def prune(conn: sqlite3.Connection, most: int) -> int:
    """Let go of at most so many operations that nothing needs any more; how many there were.

    One that is yet to be acknowledged stays, even if it was never sent: a copy of this journal may
    have sent it, and only its row keeps the server from being asked to forget it too early.
    """
    gone = conn.execute(
        "SELECT o.seq FROM cleared c CROSS JOIN ops o "
        "ON o.session = c.session AND o.writer = c.writer "
        "AND o.counter BETWEEN c.first AND c.last "
        "WHERE o.kind = 'append' AND o.live = 0 "
        f"AND o.state = {ACKED} "
        "AND NOT EXISTS (SELECT 1 FROM forgets f WHERE f.session = o.session "
        "AND f.writer = o.writer AND f.counter = o.counter) "
        "AND NOT EXISTS (SELECT 1 FROM claims k WHERE k.session = o.session "
        "AND k.writer = o.writer AND k.counter = o.counter) LIMIT ?",
        (most,),
    ).fetchall()
    conn.executemany("DELETE FROM ops WHERE seq = ?", gone)
    return len(gone)


async def tidy(journal: Journal) -> int:
    """One step of what `compact` does as a whole, at the pace of the background."""
    pruned = await journal.write(lambda conn: prune(conn, PRUNE_OPS))
    await journal.write(_reclaim)
    return pruned


async def compact(journal: Journal) -> CompactReport:
    """Let go of everything that may go, and give its space back to the file system. A search index
    that is damaged is built anew.

    Raises:
        JournalError: the journal cannot be written; what was done until then stays done.
        JournalCorrupt: it is damaged, perhaps where nobody has read yet. Nothing was done, and the
            next call sets it aside.
    """
    if not journal.in_memory:
        await journal.read_long(lambda conn, _: _look(conn))
    before, _ = await journal.read(_pages)
    operations = 0
    while True:
        pruned = await journal.write(lambda conn: prune(conn, PRUNE_OPS))
        operations += pruned
        if pruned < PRUNE_OPS:
            break
    await journal.write(search_index.mend)
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
    """(bytes of the file, bytes of it that are free)."""
    size, count, free = (
        int(conn.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_size", "page_count", "freelist_count")
    )
    return size * count, size * free


def _reclaim(conn: sqlite3.Connection) -> bool:
    """Give some free pages back; whether there may be more."""
    (before,) = conn.execute("PRAGMA freelist_count").fetchone()
    if not before:
        return False
    # Stepped to its end: each row is a page.
    conn.execute(f"PRAGMA incremental_vacuum({RECLAIM_PAGES})").fetchall()
    (after,) = conn.execute("PRAGMA freelist_count").fetchone()
    return bool(0 < after < before)


def _rebuild(conn: sqlite3.Connection) -> None:
    """Make free pages something that can be given back, where the file is of the older kind."""
    (mode,) = conn.execute("PRAGMA auto_vacuum").fetchone()
    size, free = _pages(conn)
    if mode != INCREMENTAL and free and size <= REBUILD_BYTES:
        conn.execute("PRAGMA auto_vacuum = INCREMENTAL")
        conn.execute("VACUUM")


def _shorten(conn: sqlite3.Connection) -> None:
    """Carry the log over into the file, which shrinks with that; a reader elsewhere may put it
    off until the next checkpoint."""
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
