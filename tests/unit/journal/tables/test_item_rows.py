"""The cost of a read, in steps of SQLite."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cached_session import CachedSession
from cached_session.journal.tables import item_rows
from cached_session.journal.tables.sessions import session_row


async def grown(path: Path, count: int) -> Path:
    async with CachedSession("s", journal=path) as session:
        for start in range(0, count, 10):
            batch = range(start, start + 10)
            await session.add_items([{"role": "user", "content": str(n)} for n in batch])
    return path


def steps(path: Path, limit: int) -> int:
    """Return the number of steps of SQLite that a read of the latest items takes."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        row = session_row(conn, "s")
        assert row is not None
        conn.set_progress_handler(step, 1)
        rows = item_rows.tail(conn, row[0], limit, 1 << 20)
        conn.set_progress_handler(None, 0)
        assert rows is not None
        assert len(rows) == limit
    return count


@pytest.mark.promise(number=10)
async def test_the_cost_of_a_tail_depends_on_its_length_only(tmp_path: Path) -> None:
    """A read takes as many steps in a history of a hundred items as in one of twenty thousand, and
    twice as many for twice the items."""
    short = await grown(tmp_path / "short.db", 100)
    long = await grown(tmp_path / "long.db", 20_000)
    assert steps(long, 20) == steps(short, 20)
    assert steps(long, 40) < 2.5 * steps(long, 20)
