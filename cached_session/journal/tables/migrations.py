"""The migrations of the journal's format. They run in the transaction that opens the file, so that
an interrupted migration leaves the file in its old format."""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from cached_session.journal.tables import calls
from cached_session.journal.tables.states import ACKED, PARKED

__all__ = ["migrate"]

CREATED = re.compile(r"^CREATE (?:TABLE|INDEX) (\w+)", re.MULTILINE)
"""Matches the name of the table or index that a statement creates."""
TABLE = re.compile(r"^CREATE TABLE", re.MULTILINE)
TURN = ("turn_stamp", "turn_writer", "turn_counter")
DOT = ("stamp", "writer", "counter")
ADDED = "turn_stamp, turn_writer, turn_counter, branch, key_id, version"
DEFAULTS = "stamp, writer, counter, '', '', 1"
"""The columns of operations and parts that format 2 does not have, and their values."""
NEW_TABLES = {"acked", "calls", "marks", "waiting"}
"""The tables that format 2 does not have."""
HIGHEST = (
    "INSERT INTO ops (seq, session, writer, counter, kind, turn_stamp, turn_writer, turn_counter, "
    "stamp, said_ms, count, live, bytes, private, digest, branch, key_id, version, codec) "
    "SELECT ?1, 0, '', 1, 'append', 0, '', 1, 0, 0, 1, 0, 0, 0, '-', '', '', 1, 0 "
    "WHERE ?1 > (SELECT coalesce(max(seq), 0) FROM ops)"
)
"""SQL for a row without a session, so that its `seq` is not used again."""
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
    # An early form of the format `wanted` has this format's number.
    for version in range(min(found, wanted - 1), wanted):
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
    """Migrate to format 3: an operation holds its payloads and has a turn, and each column has a
    CHECK. The source has format 2, or an early form of format 3 with a table of items.

    In a file of format 2, each append is the head of its own turn, so the order of every history
    stays the same.
    """
    columns = {
        table: [name for (name,) in conn.execute("SELECT name FROM pragma_table_info(?)", (table,))]
        for (table,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    (newest,) = conn.execute(
        "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'ops'), 0)"
    ).fetchone()
    for index in ("outbox", "removals"):
        conn.execute(f"DROP INDEX IF EXISTS {index}")
    tables = [name for name, sql in create.items() if TABLE.search(sql)]
    missing = {*tables, "items"} - NEW_TABLES - set(columns)
    if missing:
        raise sqlite3.DatabaseError(f"malformed schema: no table {min(missing)}")
    for table in set(tables).intersection(columns) | {"items"}:
        conn.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    for statement in create.values():
        conn.execute(statement)
    _move_operations(conn, has_turns="turn_stamp" in columns["ops"])
    for table in tables:
        if table in columns and table not in ("ops", "calls"):
            _move_table(conn, table, columns[table])
    # Readers of changes compare the numbers `seq`, so a number must not be used twice.
    conn.execute(HIGHEST, (newest,))
    for table in ("old_items", "old_calls"):
        conn.execute(f"DROP TABLE IF EXISTS {table}")
    calls.index_all(conn)


def _move_operations(conn: sqlite3.Connection, *, has_turns: bool) -> None:
    """Move operations with their payloads to the table `ops`, and their states to `waiting` and
    `acked`."""
    values = ADDED if has_turns else DEFAULTS
    key = ("session", *TURN, *DOT) if has_turns else ("session", *DOT)
    of_append = " AND ".join(f"i.{column} = o.{column}" for column in key)
    same = "seq, session, writer, counter, kind, stamp, said_ms, count, bytes, private, digest, "
    same += "conflicted"
    conn.execute(
        "INSERT INTO waiting SELECT session, writer, counter, seq, count, state, "
        f"CASE state WHEN {PARKED} THEN error END FROM old_ops WHERE state <> {ACKED}"
    )
    conn.execute(
        "INSERT INTO acked SELECT session, writer, counter, seq FROM old_ops "
        f"WHERE state = {ACKED} ORDER BY session, writer, counter"
    )
    _move(
        conn,
        "old_ops",
        "seq",
        f"ops ({same}, {ADDED}, resent, live, codec, body) SELECT {same}, {values}, "
        f"error IS 'sent again', CASE (SELECT count(*) FROM old_items i WHERE {of_append}) "
        "WHEN live THEN live END, "
        f"coalesce((SELECT max(codec) FROM old_items i WHERE {of_append}), 0), "
        f"CASE WHEN kind = 'append' THEN {_payloads(of_append)} ELSE body END",
        "o",
    )


def _payloads(of_append: str) -> str:
    """Return SQL for the body of an append: its payloads, with empty texts for removed ones."""
    whole = f"SELECT payload FROM old_items i WHERE {of_append} ORDER BY idx"
    partial = (
        "WITH RECURSIVE at(idx) AS (SELECT 0 UNION ALL SELECT idx + 1 FROM at "
        "WHERE idx + 1 < o.count) SELECT coalesce(i.payload, '') AS payload FROM at "
        f"LEFT JOIN old_items i ON {of_append} AND i.idx = at.idx ORDER BY at.idx"
    )
    return (
        f"CASE live WHEN 0 THEN NULL WHEN count THEN (SELECT group_concat(payload, char(30)) "
        f"FROM ({whole})) ELSE (SELECT group_concat(payload, char(30)) FROM ({partial})) END"
    )


def _move_table(conn: sqlite3.Connection, table: str, columns: Sequence[str]) -> None:
    """Move the rows of a table to the new table with the same columns, or with added ones."""
    into = values = ", ".join(columns)
    if table == "parts" and "turn_stamp" not in columns:
        into, values = f"{into}, {ADDED}", f"{values}, {DEFAULTS}"
    conn.execute(f"INSERT OR FAIL INTO {table} ({into}) SELECT {values} FROM old_{table}")
    conn.execute(f"DROP TABLE old_{table}")


def _move(conn: sqlite3.Connection, old: str, key: str, into: str, alias: str = "") -> None:
    """Move all rows of a table to a new table, and drop the old table.

    The rows are moved in slices: SQLite keeps in memory a copy of each page that one statement
    changes, and the new table uses the pages that the old table frees.

    Args:
        key: The columns of the primary key of the old table.
        into: The new table and the columns that it gets.
        alias: The alias of the old table in ``into``.
    """
    marks = ", ".join("?" * len(key.split(", ")))
    last: tuple[object, ...] | None = ()
    while last is not None:
        last = conn.execute(
            f"SELECT {key} FROM {old} ORDER BY {key} LIMIT 1 OFFSET {SLICE - 1}"
        ).fetchone()
        where = "" if last is None else f"WHERE ({key}) <= ({marks})"
        # OR FAIL: an error ends the transaction, so SQLite need not be able to undo the statement.
        conn.execute(
            f"INSERT OR FAIL INTO {into} FROM {old} {alias} {where} ORDER BY {key}", last or ()
        )
        deleted = conn.execute(f"DELETE FROM {old} {where}", last or ()).rowcount
        if last is not None and not deleted:
            raise sqlite3.DatabaseError(f"malformed rows of table {old}: they have no key")
    conn.execute(f"DROP TABLE {old}")


MIGRATIONS: dict[int, Callable[[sqlite3.Connection, Mapping[str, str]], None]] = {
    1: _to_2,
    2: _to_3,
}
"""The migration from each format to the next."""
