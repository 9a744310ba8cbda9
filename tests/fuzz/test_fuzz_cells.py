"""A journal with an invalid value in one cell, on pages that SQLite finds sound."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cached_session import CachedSession, CachedSessionError, SessionCache, SyncOptions, diagnose
from cached_session.devserver import DevServer
from cached_session.history.ops import Mark
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables import outbox, schema, search_index, writes
from tests.fuzz.test_fuzz_journal import quiet_log, text_message
from tests.hypothesis_profiles import examples

__all__ = ["quiet_log"]

PATIENCE = 60.0
"""Seconds after which a call counts as hanging."""
TRIES = 6
"""Calls until one works, as in test_fuzz_journal.py."""
OPTIONS = SyncOptions(
    durability="normal",
    busy_timeout=0.5,
    backoff_base=0.01,
    backoff_max=0.05,
    claim_patience=0.0,
    listen=False,
)
RARE = """
INSERT INTO above VALUES (1, 'elsewher', 3, 4);
INSERT INTO cleared VALUES (1, 'longgone', 1, 2);
INSERT OR REPLACE INTO settled VALUES (1, 'longgone', 1, 2);
INSERT INTO popped VALUES (1, 'elsewher', 5, 0, 2);
INSERT INTO parts VALUES (1, 'elsewher', 6, 'd', 0, 0, 2, 1, 'append', 70000, 1, 0, 's', '"te',
70000, 'elsewher', 6, '', '', 2);
INSERT INTO holes VALUES (1, 'elsewher', 2, 1, 1, 1, 0);
INSERT OR REPLACE INTO forgets VALUES (1, 'longgone', 1, 0, 1, '', 0);
INSERT INTO gates VALUES (0, 1, 100, 100, 'unreachable', 'it was away', 100);
INSERT INTO gates VALUES (1, 1, 100, 100, 'busy', 'too much', 100);
INSERT OR REPLACE INTO meta VALUES ('last_success_ms', '1000');
INSERT OR REPLACE INTO meta VALUES ('last_ack_ms', '1000');
INSERT INTO meta VALUES ('retired:longgone', '');
INSERT OR REPLACE INTO claims SELECT session, writer, counter, 0, 'longgone', 1, 1 FROM ops
WHERE live > 0 LIMIT 1;
"""
"""Rows that only many devices produce."""


CALL: list[Any] = [{"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}]
OUTPUT: list[Any] = [{"type": "function_call_output", "call_id": "c", "output": "found"}]


async def _use(path: Path, url: str) -> None:
    options = SyncOptions(durability="normal", listen=False)
    async with CachedSession.from_url("s", url=url, journal=path, options=options) as session:
        for number in range(3):
            await session.add_items(text_message(f"{number} sent", f"{number} too"))
        await session.pop_item()
        await session.sync()
        await session.audit()
    async with CachedSession("s", journal=path, options=options) as session:
        async with CachedSession("other", journal=path, options=options) as other:
            await other.add_items(text_message("cleared"))
            await other.clear_session()
            await other.add_items(text_message("left"))
        await session.import_items(text_message("imported"), source="a file")
        await session.add_items(text_message("refused"))
        await session.add_items(text_message("waits", "and waits"))
        await session.add_items(CALL)
        await session.pop_item()
        await session.add_items(text_message("last"))


def _used(url: str) -> bytes:
    """Make a journal with every kind of row, with its last items not yet indexed."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "j.db"
        asyncio.run(_use(path, url))
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            (seq,) = conn.execute("SELECT seq FROM ops WHERE body LIKE '%refused%'").fetchone()
            outbox.park(conn, seq, "refused for good")
            author = writes.Author("marker00", 1_700_000_000_000, 600_000)
            writes.write_mark(conn, author, "s", Mark("title", "", "a title"))
            reached = search_index.reach(conn)
            assert reached is not None
            search_index.catch_up(conn, reached)
            conn.executescript(RARE)
            for table in TABLES:
                assert conn.execute(f"SELECT 1 FROM {table}").fetchone(), table
            conn.execute("PRAGMA journal_mode = DELETE")
        return path.read_bytes()


def _columns() -> list[tuple[str, str]]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        schema.prepare(conn, ":memory:", search_index=False)
        return conn.execute(
            "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c "
            "WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'"
        ).fetchall()


CELLS = _columns()
TABLES = sorted({table for table, _ in CELLS})
VALUES = [
    "NULL",
    "'x'",
    "''",
    "'12'",
    "'{\"no\": 1'",
    "x'00ff'",
    "1.5",
    "0",
    "-1",
    "7",
    str(1 << 31),
    str(1 << 62),
    str((1 << 63) - 1),
    str(-(1 << 63)),
    "CAST(x'80ff' AS TEXT)",
    "CAST(x'22ff22' AS TEXT)",
]
"""Values as SQL literals."""


def _spoiled(path: Path, table: str, column: str, row: int, value: str) -> bool:
    """Put a value into a cell of any column type, and return whether the file can hold it there."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        (sql,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        lax = re.sub(r" (TEXT|INTEGER)(?! PRIMARY KEY)| NOT NULL", "", sql)
        _say(conn, table, lax)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        keys = [name for t, name in CELLS if t == table]
        where = " AND ".join(f"{name} IS ?" for name in keys)
        rows = conn.execute(f"SELECT * FROM {table}").fetchall()
        try:
            conn.execute(
                f"UPDATE {table} SET {column} = {value} WHERE {where}", rows[row % len(rows)]
            )
        except sqlite3.Error:
            return False
        _say(conn, table, sql)
    return True


def _say(conn: sqlite3.Connection, table: str, sql: str) -> None:
    conn.execute("PRAGMA writable_schema = ON")
    conn.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, table))


async def _one_change(session: CachedSession) -> None:
    changes = session.changes()
    await asyncio.wait_for(changes.__anext__(), 0.05)


Call = Callable[[CachedSession, SessionCache, Path, str], Awaitable[object]]
CALLS: dict[str, Call] = {
    "get_items": lambda s, c, p, u: s.get_items(),
    "get_items(2)": lambda s, c, p, u: s.get_items(2),
    "entries": lambda s, c, p, u: s.entries(),
    "changes": lambda s, c, p, u: _one_change(s),
    "search": lambda s, c, p, u: s.search("sent"),
    "search short": lambda s, c, p, u: s.search("s"),
    "recall": lambda s, c, p, u: s.recall("sent"),
    "parked": lambda s, c, p, u: s.parked(),
    "retry_parked": lambda s, c, p, u: s.retry_parked(),
    "status": lambda s, c, p, u: asyncio.to_thread(s.status),
    "status of all": lambda s, c, p, u: asyncio.to_thread(c.status),
    "add_items": lambda s, c, p, u: s.add_items(text_message("on")),
    "import_items": lambda s, c, p, u: s.import_items(
        text_message("imported", "more"), source="a file"
    ),
    "answer a call": lambda s, c, p, u: s.add_items(OUTPUT),
    "marks": lambda s, c, p, u: _marks(s),
    "pop_item": lambda s, c, p, u: s.pop_item(),
    "pop_item confirmed": lambda s, c, p, u: _confirmed(p, u),
    "clear_session": lambda s, c, p, u: s.clear_session(),
    "sync": lambda s, c, p, u: s.sync(5),
    "flush": lambda s, c, p, u: s.flush(5),
    "audit": lambda s, c, p, u: s.audit(),
    "compact": lambda s, c, p, u: c.compact(),
    "doctor": lambda s, c, p, u: diagnose(p, url=u),
}


async def _marks(session: CachedSession) -> object:
    engine = await session._ready()
    return await engine.journal.marks.read(SessionRef.of("s"))


async def _confirmed(path: Path, url: str) -> object:
    async with CachedSession.from_url(
        "s", url=url, journal=path, options=OPTIONS, pop="confirmed"
    ) as session:
        return await session.pop_item()


async def _called(call: Callable[[], Awaitable[Any]], name: str) -> None:
    try:
        await asyncio.wait_for(call(), PATIENCE)
    except CachedSessionError:
        return
    except asyncio.TimeoutError:
        assert name == "changes", f"{name} hangs"


async def _lives(path: Path, url: str, names: list[str]) -> None:
    """Check that each call raises only our errors, and that the session works after some tries."""
    cache = SessionCache(path, url=url, options=OPTIONS)
    session = cache.session("s")
    try:
        for name in names:
            await _called(lambda name=name: CALLS[name](session, cache, path, url), name)  # type: ignore[misc]
        for attempt in range(TRIES):
            try:
                await session.add_items(text_message("after all"))
                # Not the last one: a damaged stamp within bounds sorts another item last.
                assert text_message("after all")[0] in await session.get_items()
                assert text_message("after all")[0] in [e.item for e in await session.entries()]
                await session.sync(10)
                assert session.status().pending == 0
                assert session.status().last_error is None
                break
            except CachedSessionError:
                if attempt + 1 == TRIES:
                    raise
    finally:
        await cache.close()


@pytest.fixture(scope="module")
def server() -> Iterator[DevServer]:
    with DevServer() as running:
        yield running


@dataclass
class Used:
    """A journal, and a backup of the server that it has synced with. A failing example shows
    neither."""

    journal: bytes = field(repr=False)
    server: str = field(repr=False)


@pytest.fixture(scope="module")
def used(server: DevServer) -> Used:
    return Used(_used(server.url), server.snapshot())


# Each of these values once made a query, or a loop over rows, endless.
@example(cell=("ops", "session"), row=11, value="'5'", names=["sync"])
@example(cell=("forgets", "session"), row=0, value="'5'", names=["sync"])
@example(cell=("ops", "session"), row=11, value="NULL", names=["sync"])
@example(cell=("ops", "seq"), row=11, value="-1", names=["flush"])
@example(cell=("above", "first"), row=0, value="0", names=["clear_session", "sync"])
# These blocked the outbox of a session: the server refused every request.
@example(cell=("ops", "version"), row=9, value="'x'", names=["sync"])
@example(cell=("ops", "version"), row=9, value="7", names=["sync"])
@example(cell=("ops", "turn_stamp"), row=9, value="-1", names=["sync"])
@example(cell=("ops", "turn_writer"), row=9, value="x'00ff'", names=["sync"])
@example(cell=("ops", "branch"), row=9, value="1.5", names=["sync"])
@example(cell=("marks", "value"), row=0, value="'{\"no\": 1'", names=["marks"])
@example(cell=("settled", "last"), row=0, value="1.5", names=["clear_session"])
@examples(30)
@given(
    cell=st.sampled_from(CELLS),
    row=st.integers(0, 11),
    value=st.sampled_from(VALUES),
    names=st.lists(st.sampled_from(sorted(CALLS)), min_size=1, max_size=8, unique=True),
)
def test_calls_over_a_damaged_cell_raise_only_our_errors(
    server: DevServer,
    used: Used,
    cell: tuple[str, str],
    row: int,
    value: str,
    names: list[str],
) -> None:
    """One cell of any table has another type or is out of bounds. The calls that read it end, with
    a result or with an error of ours, and the session then works, over a recovered file if
    needed."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "j.db"
        path.write_bytes(used.journal)
        # Nothing follows the largest row number: the next write finds the journal full.
        is_full = cell == ("ops", "seq") and value == str((1 << 63) - 1)
        if not is_full and _spoiled(path, *cell, row, value):
            server.restore(used.server)
            asyncio.run(_lives(path, server.url, names))
