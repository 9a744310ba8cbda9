"""The migrations of the journal's format. They run in the transaction that opens the file, so that
an interrupted migration leaves the file in its old format."""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping

from cached_session.journal.tables import calls

__all__ = ["migrate"]

CREATED = re.compile(r"^CREATE (?:TABLE|INDEX) (\w+)", re.MULTILINE)
"""Matches the name of the table or index that a statement creates."""
LARGE_BYTES = 8 << 20
"""Minimum size in bytes of a file whose migration is logged, because the migration takes some time:
a file of 460 MB with 1,000,000 items took 27 seconds."""
SLICE = 10_000
"""Maximum number of rows that one statement moves."""

log = logging.getLogger("cached_session.journal")


def migrate(
    conn: sqlite3.Connection, path: str, found: int, wanted: int, statements: Iterable[str]
) -> None:
    """Migrate the tables from the format ``found`` to the format ``wanted``, in the open
    transaction. Log the progress of a large file.

    Args:
        statements: The statements that create the tables and indexes of the format ``wanted``.
    """
    create = {match[1]: sql for sql in statements if (match := CREATED.search(sql))}
    (pages,), (page_size,) = (
        conn.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size")
    )
    size = pages * page_size
    if size >= LARGE_BYTES:
        log.info(
            "migrate the journal %s of %d MB from format %d to format %d",
            path,
            size >> 20,
            found,
            wanted,
        )
    began = time.monotonic()
    for version in range(found, wanted):
        MIGRATIONS[version](conn, create)
    if size >= LARGE_BYTES:
        log.info(
            "migrated the journal %s to format %d in %.1f seconds",
            path,
            wanted,
            time.monotonic() - began,
        )


def _to_2(_: sqlite3.Connection, __: Mapping[str, str]) -> None:
    """Migrate to format 2, which has the full-text index (tables/search_index.py).

    This step changes no table. If SQLite has FTS5, `schema.prepare` creates the virtual table
    `words` in the same transaction; the index is filled later.
    """


def _to_3(conn: sqlite3.Connection, create: Mapping[str, str]) -> None:
    """Migrate to format 3: operations have a turn, a branch, a key and a wire version.

    Each existing append is the head of its own turn, so the order of every history stays the same.
    """
    (newest,) = conn.execute(
        "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'ops'), 0)"
    ).fetchone()
    for table in ("ops", "items", "parts"):
        conn.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    for index in ("outbox", "removals"):
        conn.execute(f"DROP INDEX IF EXISTS {index}")
    for name in ("ops", "outbox", "removals", "items", "calls", "marks", "parts"):
        conn.execute(create[name])
    same = "seq, session, writer, counter, kind, stamp, said_ms, count, live, bytes, private, "
    same += "digest, state, body, error, conflicted"
    added = "turn_stamp, turn_writer, turn_counter, branch, key_id, version"
    _move(
        conn,
        "old_ops",
        "seq",
        f"ops ({same}, {added}) SELECT {same}, stamp, writer, counter, '', '', 1",
    )
    # SQLite has stored the highest `seq` only if an operation was copied. Store it in any case: a
    # `seq` must not be used twice, because readers of changes compare these numbers.
    conn.execute("DELETE FROM sqlite_sequence WHERE name = 'ops'")
    conn.execute("INSERT INTO sqlite_sequence VALUES ('ops', ?)", (newest,))
    _move(
        conn,
        "old_items",
        "session, stamp, writer, counter, idx",
        "items SELECT session, stamp, writer, counter, stamp, writer, counter, idx, payload, codec",
    )
    _move(
        conn,
        "old_parts",
        "session, writer, counter, digest, idx, part",
        "parts SELECT *, stamp, writer, counter, '', '', 1",
    )
    calls.index_all(conn)


def _move(conn: sqlite3.Connection, old: str, key: str, into: str) -> None:
    """Move all rows of a table to a new table, and drop the old table.

    The rows are moved in slices: SQLite keeps in memory a copy of each page that one statement
    changes, and the new table uses the pages that the old table frees.

    Args:
        key: The columns of the primary key of the old table.
        into: The new table and the columns that it gets.
    """
    marks = ", ".join("?" * len(key.split(", ")))
    last: tuple[object, ...] | None = ()
    while last is not None:
        last = conn.execute(
            f"SELECT {key} FROM {old} ORDER BY {key} LIMIT 1 OFFSET {SLICE - 1}"
        ).fetchone()
        where = "" if last is None else f"WHERE ({key}) <= ({marks})"
        # OR FAIL: an error ends the transaction, so SQLite need not be able to undo the statement.
        conn.execute(f"INSERT OR FAIL INTO {into} FROM {old} {where} ORDER BY {key}", last or ())
        deleted = conn.execute(f"DELETE FROM {old} {where}", last or ()).rowcount
        if last is not None and not deleted:
            raise sqlite3.DatabaseError(f"malformed rows of table {old}: they have no key")
    conn.execute(f"DROP TABLE {old}")


MIGRATIONS: dict[int, Callable[[sqlite3.Connection, Mapping[str, str]], None]] = {
    1: _to_2,
    2: _to_3,
}
"""The migration from each format to the next."""
