"""The schema of a file that may be damaged, held against the one that a journal has.

SQLite believes whatever text stands in a schema: a table of which one byte is spoiled has other
columns, or is not there, and everything in it with it. Here the text is known better than by the
file.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import cache

from cached_session.journal.tables import schema

__all__ = ["columns", "is_whole", "misfits", "read_all", "restore"]

NAMED = "SELECT CAST(name AS BLOB), rowid FROM sqlite_master"


def is_whole(conn: sqlite3.Connection) -> bool:
    """Whether a journal of the current format has all its tables, with their columns, and indexes.

    Raises:
        sqlite3.DatabaseError, UnicodeDecodeError: its schema cannot be read.
    """
    return _shape(conn) >= _own_shape()


def misfits(conn: sqlite3.Connection) -> list[str]:
    """What does not fit together in a whole journal: rows that an index does not have, or has as
    others. SQLite's quick check looks at neither, and whoever asks such an index meets damage.

    Raises:
        sqlite3.DatabaseError: it cannot be read.
    """
    found: list[str] = []
    for _, kind, table, _, _ in _own_rows():
        if kind == "table":
            rows = conn.execute(f"PRAGMA integrity_check({table})").fetchmany(3)
            found += [str(text) for (text,) in rows if text != "ok"]
    return found


def read_all(conn: sqlite3.Connection) -> None:
    """Read every row of a whole journal but the words of items, which are read one by one.

    Raises:
        sqlite3.DatabaseError: what should be text is none.
    """
    for _, kind, table, _, _ in _own_rows():
        if kind == "table":
            columns = "session, writer" if table == "items" else "*"
            for _ in conn.execute(f"SELECT {columns} FROM {table}"):
                pass


def restore(conn: sqlite3.Connection) -> None:
    """Have a journal's tables read as they were made, until the transaction is rolled back: of a
    spoiled row of the schema nothing is believed but where its table begins.

    Raises:
        sqlite3.DatabaseError: the schema's own pages cannot be read.
    """
    rows = {bytes(name or b""): rowid for name, rowid in conn.execute(NAMED)}
    ours = {name.encode() for _, _, name, _, _ in _own_rows()}
    strange = {rowid for name, rowid in rows.items() if name not in ours}
    for rowid, kind, name, table, sql in _own_rows():
        found = rows.get(name.encode())
        if found is None and rowid in strange:
            # Its name is spoiled: it stands where it was made.
            found = rowid
        if found is not None:
            conn.execute(
                "UPDATE sqlite_master SET type = ?, name = ?, tbl_name = ?, sql = ? "
                "WHERE rowid = ?",
                (kind, name, table, sql, found),
            )
    conn.execute("PRAGMA writable_schema = RESET")
    conn.execute("PRAGMA writable_schema = ON")


def columns() -> dict[str, list[tuple[str, str, bool]]]:
    """(name, declared type, whether it must have a value) of each column of a journal's tables."""
    found: dict[str, list[tuple[str, str, bool]]] = {}
    with closing(_made()) as conn:
        for table, name, type_, is_needed in conn.execute(
            'SELECT m.name, c.name, c.type, c."notnull" '
            "FROM sqlite_master m, pragma_table_info(m.name) c "
            "WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%' ORDER BY m.rowid, c.cid"
        ):
            found.setdefault(table, []).append((name, type_, bool(is_needed)))
    return found


Row = tuple[int, str, str, str, str | None]


def _shape(conn: sqlite3.Connection) -> frozenset[tuple[object, ...]]:
    # As bytes: a name may be no text any more. Without the search index (a virtual table has no
    # page of its own), which cannot even be asked for its columns where it is damaged.
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
def _own_shape() -> frozenset[tuple[object, ...]]:
    with closing(_made()) as conn:
        return _shape(conn)


@cache
def _own_rows() -> list[Row]:
    with closing(_made()) as conn:
        return conn.execute("SELECT rowid, type, name, tbl_name, sql FROM sqlite_master").fetchall()


def _made() -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    schema.prepare(conn, ":memory:", search_index=False)
    return conn
