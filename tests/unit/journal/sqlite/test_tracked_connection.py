"""The version of histories, and the counters behind it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cached_session.journal.sqlite.tracked_connection import (
    TrackedConnection,
    count_history_change,
    count_queued,
    version_of,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "j.db"
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("CREATE TABLE t (x)")
    return path


@pytest.fixture
def conn(path: Path) -> Iterator[TrackedConnection]:
    with closing(sqlite3.connect(path, factory=TrackedConnection, isolation_level=None)) as conn:
        yield conn


def test_a_version_stays_until_a_history_changes(conn: TrackedConnection) -> None:
    """A write that changes no history keeps the version, one that does changes it."""
    before = version_of(conn)
    conn.execute("INSERT INTO t VALUES (1)")
    assert version_of(conn) == before
    count_history_change(conn)
    conn.execute("INSERT INTO t VALUES (2)")
    assert version_of(conn) != before


def test_a_commit_of_another_connection_changes_the_version(
    path: Path, conn: TrackedConnection
) -> None:
    """Any commit of another connection counts, since it cannot be told what it changed."""
    before = version_of(conn)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("INSERT INTO t VALUES (1)")
    assert version_of(conn) != before


def test_versions_of_two_connections_differ(path: Path, conn: TrackedConnection) -> None:
    """A file that was opened again never has a version of the time before."""
    with closing(sqlite3.connect(path, factory=TrackedConnection)) as other:
        assert version_of(conn)[1:] == version_of(other)[1:]
        assert version_of(conn) != version_of(other)


def test_every_row_counts_on_a_plain_connection(path: Path) -> None:
    """A connection without counters gets a new version with each row that it writes."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        before = version_of(conn)
        count_history_change(conn)
        count_queued(conn)
        assert version_of(conn) == before
        conn.execute("INSERT INTO t VALUES (1)")
        assert version_of(conn) != before


def test_a_rollback_keeps_the_counts(conn: TrackedConnection) -> None:
    """The counters may be too high, never too low."""
    conn.execute("BEGIN")
    count_history_change(conn)
    count_queued(conn)
    conn.execute("ROLLBACK")
    assert (conn.history_changes, conn.queue_additions) == (1, 1)


def test_the_counters_belong_to_one_connection(path: Path, conn: TrackedConnection) -> None:
    """Two connections to a file count for themselves."""
    with closing(sqlite3.connect(path, factory=TrackedConnection)) as other:
        count_queued(other)
        assert (other.queue_additions, conn.queue_additions) == (1, 0)
