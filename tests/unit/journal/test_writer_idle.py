"""Checkpoints of the write-ahead log by the idle writing thread."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from cached_session.journal import writer
from cached_session.journal.idle_work import LOGGED_MOST
from cached_session.journal.journal import Journal

CARRY = "PRAGMA wal_checkpoint(PASSIVE)"


@pytest.fixture(autouse=True)
def short_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "IDLE", 0.001)


async def watched(journal: Journal, statement: str) -> threading.Event:
    """Return an event that is set when the writing thread reaches this statement."""
    came = threading.Event()

    def trace(sql: str) -> None:
        if sql == statement:
            came.set()

    await journal.maintain(lambda conn: conn.set_trace_callback(trace))
    return came


async def write(journal: Journal, first: int, most: int) -> None:
    for number in range(first, first + most):
        await journal.write(
            lambda conn, key=f"k{number}": conn.execute("INSERT INTO meta VALUES (?, 'x')", (key,))
        )


def count(conn: sqlite3.Connection) -> int:
    (found,) = conn.execute("SELECT count(*) FROM meta WHERE key GLOB 'k*'").fetchone()
    return int(found)


async def test_a_copied_log_is_reused(tmp_path: Path) -> None:
    """After some writes and a pause, further writes use no more disk space."""
    log = tmp_path / "j.db-wal"
    journal = Journal(tmp_path / "j.db")
    came = await watched(journal, CARRY)
    await write(journal, 0, LOGGED_MOST)
    assert await asyncio.to_thread(came.wait, 20)
    # The next job comes after what the thread is at.
    await journal.maintain(lambda conn: conn.set_trace_callback(None))
    size = log.stat().st_size
    await write(journal, LOGGED_MOST, LOGGED_MOST - 1)
    assert log.stat().st_size == size
    assert await journal.read(count) == 2 * LOGGED_MOST - 1
    await journal.close()


async def test_the_log_is_copied_despite_a_reader(tmp_path: Path) -> None:
    """No write waits for another program that reads, and that program keeps its snapshot."""
    journal = Journal(tmp_path / "j.db", busy_timeout=3600)
    came = await watched(journal, CARRY)
    await write(journal, 0, 1)
    with closing(sqlite3.connect(tmp_path / "j.db", isolation_level=None)) as other:
        other.execute("BEGIN")
        assert count(other) == 1
        await write(journal, 1, LOGGED_MOST)
        assert await asyncio.to_thread(came.wait, 20)
        await asyncio.wait_for(write(journal, LOGGED_MOST + 1, LOGGED_MOST), 20)
        assert count(other) == 1
        other.execute("COMMIT")
        assert count(other) == await journal.read(count) == 2 * LOGGED_MOST + 1
    await journal.close()


async def test_a_log_that_cannot_be_copied_does_not_block_writes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is logged, and the thread goes on writing."""
    journal = Journal(tmp_path / "j.db")
    came = threading.Event()

    def refuse(_: int, name: str | None, *__: str | None) -> int:
        if name != "wal_checkpoint":
            return sqlite3.SQLITE_OK
        came.set()
        return sqlite3.SQLITE_DENY

    await journal.maintain(lambda conn: conn.set_authorizer(refuse))
    await write(journal, 0, LOGGED_MOST)
    assert await asyncio.to_thread(came.wait, 20)
    await write(journal, LOGGED_MOST, 1)
    assert "idle work of the journal failed" in caplog.text
    assert await journal.read(count) == LOGGED_MOST + 1
    await journal.close()
