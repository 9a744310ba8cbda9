"""Comparison of a file's schema with that of a new journal, and repair of a damaged schema.

SQLite trusts the schema text in the file. If one byte of this text is damaged, a table
seems to have other columns, or seems to be missing together with its rows. The expected text is
known from `tables/schema.py`.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import cache

from cached_session.journal.tables import schema

__all__ = [
    "columns",
    "decode_all_texts",
    "index_problems",
    "is_complete",
    "restore_schema",
]

NAMES = "SELECT CAST(name AS BLOB), rowid FROM sqlite_master"


def is_complete(conn: sqlite3.Connection) -> bool:
    """Return whether a journal of the current format has all tables with their columns, and all
    indexes.

    Raises:
        sqlite3.DatabaseError, UnicodeDecodeError: the schema cannot be read.
    """
    return _columns_and_indexes(conn) >= _expected_columns_and_indexes()


def columns(conn: sqlite3.Connection) -> dict[str, frozenset[str]]:
    """Return the names of the columns of each table that both a new journal and the file have.

    Raises:
        sqlite3.DatabaseError: the schema cannot be read.
    """
    found: dict[str, frozenset[str]] = {}
    for table in _tables():
        rows = conn.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchall()
        if rows:
            found[table] = frozenset(name for (name,) in rows)
    return found


def index_problems(conn: sqlite3.Connection) -> list[str]:
    """Describe rows of a journal with a complete schema that an index lacks or has with other
    values. SQLite's quick check does not compare indexes with tables, but a query over such an
    index fails.

    Raises:
        sqlite3.DatabaseError: the file cannot be read.
    """
    found: list[str] = []
    for table in columns(conn):
        rows = conn.execute(f"PRAGMA integrity_check({table})").fetchmany(3)
        found += [str(text) for (text,) in rows if text != "ok"]
    return found


def decode_all_texts(conn: sqlite3.Connection) -> None:
    """Read every row, so that a text that is not valid UTF-8 raises an error. Payloads of items are
    not read, because a damaged payload affects its own item only.

    Raises:
        sqlite3.DatabaseError: a text cannot be decoded, or the file cannot be read.
    """
    for table, names in columns(conn).items():
        listed = ", ".join(sorted(names - {"body"}))
        for _ in conn.execute(f"SELECT {listed} FROM {table}"):
            pass
    for _ in conn.execute("SELECT body FROM ops WHERE kind <> 'append'"):
        pass


def restore_schema(conn: sqlite3.Connection) -> None:
    """Replace the schema by that of a new journal, until the transaction is rolled back. Each
    damaged row of the schema keeps only the number of the page where its table begins.

    Raises:
        sqlite3.DatabaseError: the pages of the schema cannot be read.
    """
    rows = {bytes(name or b""): rowid for name, rowid in conn.execute(NAMES)}
    expected = {name.encode() for _, _, name, _, _ in _expected_rows()}
    unknown = {rowid for name, rowid in rows.items() if name not in expected}
    for rowid, kind, name, table, sql in _expected_rows():
        found = rows.get(name.encode())
        if found is None and rowid in unknown:
            # The name in this schema row is damaged, but its row number is that of a new journal.
            found = rowid
        if found is not None:
            conn.execute(
                "UPDATE sqlite_master SET type = ?, name = ?, tbl_name = ?, sql = ? "
                "WHERE rowid = ?",
                (kind, name, table, sql, found),
            )
    conn.execute("PRAGMA writable_schema = RESET")
    conn.execute("PRAGMA writable_schema = ON")


SchemaRow = tuple[int, str, str, str, str | None]
"""The row number, type, name, table and SQL statement of a row of `sqlite_master`."""


def _columns_and_indexes(conn: sqlite3.Connection) -> frozenset[tuple[object, ...]]:
    # Read names as bytes, because a damaged name may not be valid UTF-8. Skip the search index: as
    # a virtual table it has no root page, and SQLite cannot list its columns if it is damaged.
    columns = conn.execute(
        "SELECT CAST(m.name AS BLOB), c.cid, CAST(c.name AS BLOB), CAST(c.type AS BLOB), c.pk "
        "FROM sqlite_master m, pragma_table_xinfo(m.name) c "
        "WHERE m.type = 'table' AND m.rootpage <> 0"
    ).fetchall()
    indexes = conn.execute(
        "SELECT CAST(m.name AS BLOB), CAST(m.tbl_name AS BLOB), c.seqno, CAST(c.name AS BLOB) "
        "FROM sqlite_master m, pragma_index_info(m.name) c WHERE m.type = 'index'"
    ).fetchall()
    return frozenset([*columns, *indexes])


@cache
def _expected_columns_and_indexes() -> frozenset[tuple[object, ...]]:
    with closing(_new_journal()) as conn:
        return _columns_and_indexes(conn)


@cache
def _expected_rows() -> list[SchemaRow]:
    with closing(_new_journal()) as conn:
        return conn.execute("SELECT rowid, type, name, tbl_name, sql FROM sqlite_master").fetchall()


def _tables() -> list[str]:
    return [table for _, kind, table, _, _ in _expected_rows() if kind == "table"]


def _new_journal() -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    schema.prepare(conn, ":memory:", search_index=False)
    return conn
