"""The search for damage before a journal file is replaced."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cached_session.errors import JournalError, JournalTooNew
from cached_session.journal.recovery.find_damage import find_damage
from cached_session.journal.tables import schema
from tests.unit.journal.recovery.recovery_support import (
    add,
    change_cells,
    open_journal,
    overwrite_page,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed journal with an item."""
    path = tmp_path / "agent.db"
    with closing(open_journal(path)) as conn:
        add(conn, "a")
    return path


def found(path: Path) -> str | None:
    return find_damage(str(path), "the journal", 0.0)


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            conn.execute(statement)


def test_an_intact_journal_has_no_damage(path: Path) -> None:
    """The check changes nothing in the file."""
    before = path.read_bytes()
    assert found(path) is None
    assert path.read_bytes() == before


def test_a_damaged_page_is_found(path: Path) -> None:
    """SQLite's own check finds it."""
    overwrite_page(path, "ops")
    assert found(path) is not None


def test_a_file_that_begins_with_other_bytes_is_not_replaced(path: Path) -> None:
    """SQLite does not take it for a database, so it may be anything."""
    path.write_bytes(b"\xff" * 8192)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        found(path)


@pytest.mark.parametrize(
    ("statement", "damage"),
    [
        ("PRAGMA user_version = 0", "its format number 0 is not valid"),
        ("DROP INDEX place", "its schema is not that of a journal"),
        ("UPDATE ops SET live = 9", "CHECK constraint failed in ops"),
        ("DELETE FROM waiting", "an operation has no row in the table waiting or acked"),
        ("DELETE FROM ops", "a row of the table waiting or acked has no operation"),
    ],
)
def test_each_kind_of_damage_is_found(path: Path, statement: str, damage: str) -> None:
    """The format number, the schema, the cells, and rows that belong together are checked."""
    execute(path, statement)
    assert found(path) == damage


def test_a_text_that_is_not_utf8_is_found(path: Path) -> None:
    """SQLite does not check texts."""
    with closing(open_journal(path)) as conn:
        change_cells(conn, "ops", "digest = CAST(x'80ff' AS TEXT)")
    assert "decode to UTF-8" in str(found(path))


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (f"PRAGMA user_version = {schema.FORMAT + 1}", JournalTooNew),
        ("PRAGMA application_id = 7", JournalError),
    ],
)
def test_a_file_of_another_program_or_version_is_refused(
    path: Path, statement: str, error: type[JournalError]
) -> None:
    """It must not be replaced."""
    execute(path, statement)
    with pytest.raises(error, match="the journal"):
        found(path)


def test_a_locked_file_is_not_damaged(path: Path) -> None:
    """The error of SQLite is passed on."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = DELETE")
        conn.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            found(path)
