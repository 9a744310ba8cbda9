"""Journals for the tests of the recovery, and ways to damage them."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from cached_session.journal import open_connection
from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import outbox, schema, writes
from tests.journal_rows import ITEMS, OPS, spoil

SESSION = "talk"
WRITER = "mewriter"


def open_journal(path: Path) -> sqlite3.Connection:
    """Open a journal, and create it if there is none."""
    conn = open_connection.connect(str(path), 1000, "normal")
    schema.prepare(conn, str(path))
    return conn


def author(writer: str = WRITER) -> writes.Author:
    return writes.Author(writer, 1000, 600_000)


def add(
    conn: sqlite3.Connection, *words: str, session: str = SESSION, writer: str = WRITER
) -> None:
    """Append a batch of items."""
    writes.append(conn, author(writer), session, encode_items(list(words)), private=False)


def acknowledge(conn: sqlite3.Connection) -> None:
    """Mark every operation as acknowledged."""
    outbox.acknowledge(conn, [seq for (seq,) in conn.execute("SELECT seq FROM ops")])


def items(conn: sqlite3.Connection) -> list[str]:
    """Return the JSON texts of all items in their order."""
    order = "ORDER BY session, stamp, writer, counter, idx"
    return [text for (text,) in conn.execute(f"SELECT payload FROM {ITEMS} {order}")]


def dots(conn: sqlite3.Connection) -> list[tuple[str, int, int]]:
    """Return the writer, counter and state of all operations."""
    return conn.execute(f"SELECT writer, counter, state FROM {OPS} ORDER BY seq").fetchall()


def change_cells(conn: sqlite3.Connection, table: str, change: str) -> None:
    """Update rows of a table as if its columns took any value."""
    (sql,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    for text in (re.sub(r" (TEXT|INTEGER)(?! PRIMARY KEY)| NOT NULL", "", sql), sql):
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (text, table))
        conn.execute("PRAGMA writable_schema = RESET")
        if text is not sql:
            spoil(conn, f"UPDATE {table} SET {change}")


def overwrite_page(path: Path, name: str) -> None:
    """Overwrite the first page of a table or an index of a journal that is not open."""
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (root,) = conn.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)
        ).fetchone()
        (size,) = conn.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
