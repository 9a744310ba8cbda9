"""The schema of a damaged file, compared with that of a new journal."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cached_session.journal.recovery.schema_check import (
    decode_all_texts,
    index_problems,
    is_complete,
    restore_schema,
)
from cached_session.journal.tables import schema
from tests.journal_rows import change_payloads
from tests.unit.journal.recovery.recovery_support import add, change_cells, items


def edit_schema(conn: sqlite3.Connection, change: str, name: str) -> None:
    """Update the row of a table or index in the schema."""
    conn.execute("PRAGMA writable_schema = ON")
    conn.execute(f"UPDATE sqlite_master SET {change} WHERE name = ?", (name,))
    conn.execute("PRAGMA writable_schema = RESET")


DAMAGE = {
    "another column": ("sql = replace(sql, 'digest TEXT', 'dogest TEXT')", "ops"),
    "another type": ("sql = replace(sql, 'digest TEXT', 'digest TEXX')", "ops"),
    "another table": ("name = 'opq', tbl_name = 'opq', sql = replace(sql, 'ops', 'opq')", "ops"),
    "another index": ("sql = replace(sql, '(session, kind)', '(session, seq)')", "removals"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_schema_is_found(old: sqlite3.Connection, what: str) -> None:
    """Each table, column and index must be that of a new journal."""
    assert is_complete(old)
    edit_schema(old, *DAMAGE[what])
    # Without this, SQLite raises an error for an index whose table is missing.
    old.execute("PRAGMA writable_schema = ON")
    assert not is_complete(old)


def test_a_further_table_is_no_damage(old: sqlite3.Connection) -> None:
    """Tables that another program added are ignored."""
    old.execute("CREATE TABLE notes (text)")
    assert is_complete(old)


@pytest.mark.parametrize("what", [what for what in DAMAGE if what != "another index"])
def test_a_damaged_schema_is_restored_until_the_rollback(path: Path, what: str) -> None:
    """The rows can be read with the right columns, and the file is not changed."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        schema.prepare(conn, str(path))
        add(conn, "a")
        edit_schema(conn, *DAMAGE[what])
    before = path.read_bytes()
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute("BEGIN IMMEDIATE")
        assert not is_complete(conn)
        restore_schema(conn)
        assert is_complete(conn)
        assert items(conn) == ['"a"']
        assert conn.execute("SELECT count(digest) FROM ops").fetchone() == (1,)
        conn.execute("ROLLBACK")
    assert path.read_bytes() == before


def test_an_index_that_differs_from_its_table_is_found(path: Path, old: sqlite3.Connection) -> None:
    """The quick check of SQLite does not compare them."""
    for word in "abc":
        add(old, word)
    assert index_problems(old) == []
    (root,) = old.execute("SELECT rootpage FROM sqlite_master WHERE name = 'behind'").fetchone()
    old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    old.close()
    data = bytearray(path.read_bytes())
    page = (root - 1) * 4096
    cell = page + int.from_bytes(data[page + 8 : page + 10], "big")
    assert data[page] == 10  # a leaf page of an index
    data[cell + data[cell]] = 99  # the row number of the first entry
    path.write_bytes(data)
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        assert any("behind" in problem for problem in index_problems(conn))


def test_a_text_that_is_not_utf8_is_found(old: sqlite3.Connection) -> None:
    """Payloads of items are left out: a read skips a damaged one."""
    add(old, "a")
    change_payloads(old, lambda *_: b"\x80\xff")
    decode_all_texts(old)
    change_cells(old, "ops", "digest = CAST(x'80ff' AS TEXT)")
    with pytest.raises(sqlite3.OperationalError, match="decode to UTF-8"):
        decode_all_texts(old)
