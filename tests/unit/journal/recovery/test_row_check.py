"""Cells that no version of the library could have written."""

from __future__ import annotations

import re
import sqlite3

import pytest

from cached_session.history import ops
from cached_session.journal.recovery.read_damaged import decode_or_keep
from cached_session.journal.recovery.row_check import (
    invalid_rows,
    is_meta_row,
    is_session_id,
)
from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import outbox, writes
from cached_session.journal.tables.cell_checks import BOUNDS, NULLABLE, TYPES
from cached_session.journal.tables.import_marks import (
    NOTHING,
    Mark,
    append_marked,
    mark_key,
    mark_named,
    name_key,
)
from tests.unit.journal.recovery.recovery_support import SESSION, add, author, change_cells


def test_a_journal_in_use_has_no_invalid_cells(old: sqlite3.Connection) -> None:
    """Appends, pops and clears write valid rows only, also for ids with lone surrogates."""
    for session in (SESSION, "half \ud83d"):
        add(old, "a", "b", session=session)
        writes.pop(old, author(), session)
        writes.clear(old, author(), session)
        add(old, "c", session=session)
    assert invalid_rows(old) == []


def test_the_name_of_an_imported_source_is_valid(old: sqlite3.Connection) -> None:
    """Its row has the key of a mark as its value."""
    key, name = mark_key(SESSION, "a file", "first"), name_key(SESSION, "a file")
    batch = encode_items(["first"])
    append_marked(
        old,
        author(),
        SESSION,
        batch,
        private=False,
        key=key,
        before=NOTHING,
        after=Mark(1, "ab"),
        name=name,
    )
    assert mark_named(old, name) == (key, Mark(1, "ab"))
    assert invalid_rows(old) == []


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("ops", "counter = 1 << 62"),
        ("ops", "kind = 'nothing'"),
        ("ops", "digest = ''"),
        ("ops", "digest = NULL"),
        ("ops", "body = x'37'"),
        ("ops", "live = 9"),
        ("ops", "codec = 1.5"),
        ("ops", "tokens = -1"),
        ("ops", "turn_stamp = stamp + 1"),
        ("ops", "turn_writer = x'37'"),
        ("ops", "turn_stamp = 'x'"),
        ("ops", "turn_counter = 0"),
        ("ops", "branch = 'a|b'"),
        ("ops", "key_id = NULL"),
        ("ops", "version = 3"),
        ("waiting", "state = 2"),
        ("waiting", "error = x'37'"),
        ("acked", "seq = 0"),
        ("sessions", "met = 2"),
        ("sessions", "ground = 'x'"),
        ("frontier", "upto = -1"),
        ("frontier", "behind = 2"),
        ("calls", "call = 'x'"),
        ("marks", "value = NULL"),
        ("marks", "type = x'37'"),
        ("marks", "stamp = -1"),
        ("parts", "version = 0"),
        ("parts", "branch = ' '"),
        ("parts", "turn_writer = x'37'"),
    ],
)
def test_sqlite_finds_an_invalid_cell(old: sqlite3.Connection, table: str, change: str) -> None:
    """Each column has a type and bounds. A statement cannot write an invalid cell, and SQLite's own
    check finds one."""
    add_all(old)
    outbox.acknowledge(old, [1])
    with pytest.raises(sqlite3.IntegrityError):
        old.execute(f"UPDATE {table} SET {change}")
    change_cells(old, table, change)
    found = [text for (text,) in old.execute("PRAGMA quick_check")]
    assert any(table in text for text in found), found


def test_every_column_has_a_check(old: sqlite3.Connection) -> None:
    """Except integer primary keys, which have no other type, and the key of `meta`."""
    for table, sql in old.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT GLOB 'words*'"
    ).fetchall():
        for _, column, *_, key in old.execute(f"PRAGMA table_info({table})"):
            has_check = re.search(rf"^    {column} .*CHECK \(", sql, re.MULTILINE)
            assert (
                has_check
                or (key == 1 and f"{column} INTEGER PRIMARY KEY" in sql)
                or ((table, column) == ("meta", "key"))
            ), (table, column)


@pytest.mark.parametrize("value", ["'{'", "''", "'\"' || CAST(x'80' AS TEXT) || '\"'"])
def test_a_mark_without_a_valid_value_is_found(old: sqlite3.Connection, value: str) -> None:
    """Otherwise every call that reads the marks would fail, and no recovery would begin."""
    add_all(old)
    assert invalid_rows(old) == []
    change_cells(old, "marks", f"value = {value}")
    old.text_factory = decode_or_keep
    assert invalid_rows(old) == ["the value of the mark 'title' is not valid"]


def add_all(conn: sqlite3.Connection) -> None:
    """Write an item with a call, a mark and a part of an operation."""
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    writes.append(conn, author(), SESSION, encode_items([call]), private=False)
    writes.write_mark(conn, author("marker00"), SESSION, ops.Mark("title", "", "a title"))
    conn.execute(
        "INSERT INTO parts VALUES (1, 'w', 1, 'd', 0, 0, 2, 1, 'append', 7, 1, 0, 's', '\"te', "
        "7, 'w', 1, '', '', 2)"
    )


def test_an_operation_outside_the_frontier_is_found(old: sqlite3.Connection) -> None:
    """Its counter would be given to another operation."""
    add(old, "a")
    add(old, "b")
    assert invalid_rows(old) == [], "an append that is not folded yet is inside"
    old.execute("UPDATE frontier SET upto = 1, behind = 0")
    assert invalid_rows(old) == ["the frontier does not include all operations"]
    old.execute("INSERT INTO above SELECT session, writer, 2, 2 FROM frontier")
    assert invalid_rows(old) == []


def test_an_acknowledged_append_is_never_unfolded(old: sqlite3.Connection) -> None:
    """The counter of its writer is found in `waiting`, so the counter would be used again."""
    add(old, "a")
    add(old, "b")
    (behind,) = old.execute("SELECT behind FROM frontier").fetchone()
    assert behind == 1
    old.execute(
        "INSERT INTO acked SELECT session, writer, counter, seq FROM waiting WHERE counter = 2"
    )
    old.execute("DELETE FROM waiting WHERE counter = 2")
    assert invalid_rows(old) == ["the frontier does not include all operations"]


def test_an_invalid_meta_row_is_found(old: sqlite3.Connection) -> None:
    """The description names its key."""
    old.execute("INSERT INTO meta VALUES ('last_success_ms', 'soon')")
    assert invalid_rows(old) == ["the meta row 'last_success_ms' has an invalid value"]


def test_an_invalid_session_id_is_found(old: sqlite3.Connection) -> None:
    """The description names its row."""
    old.execute("INSERT INTO sessions (session_id, created_ms) VALUES (x'ff', 1)")
    assert "the id of the session with row number 1 is not valid" in invalid_rows(old)


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        ("server", "https://a", True),
        ("server", b"https://a", False),
        (b"server", "https://a", False),
        ("salvage", "{}", True),
        ("salvage", "[]", False),
        ("salvage", "{", False),
        ("import:1:file", "12:ab", True),
        ("import:1:file", "12", False),
        ("import:1:file", "import:0a:ff", True),
        ("import:1:file", "import:0a", False),
        ("audit:1", "-5", True),
        ("audit:1", "x", False),
        ("last_ack_ms", "1000", True),
        ("last_ack_ms", "10000000000000000000000", False),
        ("search_index", "7", True),
        ("search_index", "", False),
    ],
)
def test_a_meta_row_is_valid_if_its_reader_can_read_it(
    key: object, value: object, valid: bool
) -> None:
    """Numbers, marks and reports have a form; all else is any text."""
    assert is_meta_row(key, value) is valid


@pytest.mark.parametrize(
    ("stored", "valid"),
    [
        ("talk", True),
        ("", True),
        ("\ud83d".encode("utf-8", "surrogatepass"), True),
        (b"\xff", False),
        (b"", False),
        (7, False),
        (None, False),
    ],
)
def test_a_session_id_is_a_text_or_its_bytes(stored: object, valid: bool) -> None:
    """Bytes are stored for an id with lone surrogates only."""
    assert is_session_id(stored) is valid


def test_every_bound_is_of_a_column(old: sqlite3.Connection) -> None:
    """A bound whose column was renamed would no longer be checked."""
    tables = [row[0] for row in old.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    names = {row[1] for table in tables for row in old.execute(f"PRAGMA table_info({table})")}
    assert set(BOUNDS) | set(TYPES) | NULLABLE <= names
