"""The counts of a status, and their source: the rows of the tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cached_session import CachedSession, JournalCorrupt, SessionCache
from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import schema, status_counts, writes
from cached_session.journal.tables.writes import Author
from tests.journal_rows import spoil

AUTHOR = Author("writerwriter", 5000, 600_000)
MESSAGE = {"role": "user", "content": "hello"}


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        schema.prepare(opened, ":memory:", search_index=False)
        yield opened


def test_the_counts_of_all_sessions_are_sums(conn: sqlite3.Connection) -> None:
    """Each session has its own counts; the oldest pending time is the smallest one."""
    for name, items in (("a", 2), ("b", 3)):
        writes.append(conn, AUTHOR, name, encode_items([MESSAGE] * items), private=False)
    rows = status_counts.status_rows(conn, None, 9000, 1000)
    assert {name: counts.items for name, counts in rows.sessions.items()} == {"a": 2, "b": 3}
    both = status_counts.counts_of(conn, None, 9000, 1000)
    assert (both.items, both.pending, both.oldest_pending_ms) == (5, 2, 5000)
    one = status_counts.status_rows(conn, "b", 9000, 1000)
    assert list(one.sessions) == ["b"]
    assert one.sessions["b"] == rows.sessions["b"]


@pytest.mark.parametrize("column", ["conflicts", "unreadable", "guard", "pulled_ms"])
async def test_a_damaged_cell_is_reported_as_damage(tmp_path: Path, column: str) -> None:
    """The status of a cache adds up the cells of its sessions. None of them may be another type."""
    path = tmp_path / "a.db"
    async with CachedSession("a", journal=path) as session:
        await session.add_items([MESSAGE])
    value = "x'00'" if column == "guard" else "'text'"
    with closing(sqlite3.connect(path)) as conn:
        spoil(conn, f"UPDATE sessions SET {column} = {value}")
        conn.commit()
    async with SessionCache(path) as cache:
        await cache.session("a").get_items(1)
        with pytest.raises(JournalCorrupt):
            cache.status()
