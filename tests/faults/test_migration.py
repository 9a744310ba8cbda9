"""The migration of a journal takes effect entirely or not at all, whatever fails in the middle."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cached_session.journal import open_connection
from cached_session.journal.sqlite.tracked_connection import TrackedConnection
from cached_session.journal.tables import schema
from tests.golden.test_golden_journals import FORMATS, write_journal

KILLED = """
import os, signal, sqlite3, sys
from cached_session.journal import open_connection
from cached_session.journal.tables import schema

path, left = sys.argv[1], int(sys.argv[2])

def step():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0

conn = open_connection.connect(path, 1000, "normal")
conn.set_progress_handler(step, 100)
schema.prepare(conn, path)
"""

Content = dict[str, Any]


def content(path: Path) -> Content:
    """Return everything in a file: its format, its schema and all rows."""
    with closing(sqlite3.connect(path)) as conn:
        (version,) = conn.execute("PRAGMA user_version").fetchone()
        tables = conn.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name <> 'words'"
        ).fetchall()
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {
            "version": version,
            **{
                name: (sql, sorted(conn.execute(f"SELECT * FROM {name}").fetchall(), key=repr))
                for name, sql in tables
            },
        }


def finished(path: Path, version: int) -> Content:
    """Return the content of a golden journal after its migration."""
    with closing(open_connection.connect(str(write_journal(path, version)), 0, "normal")) as conn:
        schema.prepare(conn, str(path))
    return content(path)


class Failing(TrackedConnection):
    """A connection whose n-th statement fails, before or after it took effect."""

    left = 0
    is_late = False
    hit = ""

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        return self._passing(sql, lambda: super(Failing, self).execute(sql, *arguments))

    def executemany(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        return self._passing(sql, lambda: super(Failing, self).executemany(sql, *arguments))

    def _passing(self, sql: str, run: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        # The search for FTS5 takes any error as an answer.
        self.left -= "trywords" not in sql
        if self.left != 0 or self.hit:
            return run()
        self.hit = sql
        if self.is_late:
            run()
        raise sqlite3.OperationalError("disk I/O error")


@pytest.mark.slow
@pytest.mark.parametrize("is_late", [False, True], ids=["before its effect", "after its effect"])
@pytest.mark.parametrize("version", FORMATS)
def test_a_failed_statement_leaves_the_old_format_or_the_new_one(
    tmp_path: Path, version: int, is_late: bool
) -> None:
    """For every statement of the migration: the file is unchanged, or migrated if the commit took
    effect. The next opening completes the migration with the same result."""
    after = finished(tmp_path / "after.db", version)
    path = tmp_path / "agent.db"
    for nth in count(1):
        before = content(write_journal(path, version))
        with closing(sqlite3.connect(path, isolation_level=None, factory=Failing)) as conn:
            conn.left, conn.is_late = nth, is_late  # type: ignore[attr-defined]
            with suppress(sqlite3.OperationalError):
                schema.prepare(conn, str(path))
            hit = conn.hit  # type: ignore[attr-defined]
        if not hit:
            break
        assert content(path) == (after if is_late and hit == "COMMIT" else before), hit
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            schema.prepare(conn, str(path))
        assert content(path) == after, hit
    assert content(path) == after
    assert nth > 25


@pytest.mark.parametrize("version", FORMATS)
def test_a_full_disk_leaves_the_old_format(tmp_path: Path, version: int) -> None:
    """However many pages the file may grow by, it is unchanged or migrated."""
    after = finished(tmp_path / "after.db", version)
    path = tmp_path / "agent.db"
    for pages in count():
        before = content(write_journal(path, version))
        with closing(open_connection.connect(str(path), 0, "normal")) as conn:
            (size,) = conn.execute("PRAGMA page_count").fetchone()
            conn.execute(f"PRAGMA max_page_count = {size + pages}")
            if _fits(conn, path):
                break
        assert content(path) == before
    assert content(path) == after
    assert pages > 5


def _fits(conn: sqlite3.Connection, path: Path) -> bool:
    """Return whether the migration succeeds, or fails because the file is full."""
    try:
        schema.prepare(conn, str(path))
    except sqlite3.OperationalError as error:
        if "full" not in str(error):
            raise
        return False
    return True


def test_a_killed_migration_starts_again(tmp_path: Path) -> None:
    """A process that is killed in the middle of a statement leaves the old format. The next
    opening completes the migration with the same result."""
    after = finished(tmp_path / "after.db", 2)
    path = tmp_path / "agent.db"
    for steps in count(1, 12):
        before = content(write_journal(path, 2))
        child = subprocess.run([sys.executable, "-c", KILLED, path, str(steps)], check=False)
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL
        assert content(path) == before
        with closing(open_connection.connect(str(path), 1000, "normal")) as conn:
            schema.prepare(conn, str(path))
        assert content(path) == after
    assert content(path) == after
    assert steps > 36
