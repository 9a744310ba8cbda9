"""Recovery of damaged journals of formats 1 and 2 into files of the current format."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from cached_session import JournalError, SessionCache
from cached_session.journal import open_connection
from cached_session.journal.recovery.copy_rows import WriterIds, copy_journal
from cached_session.journal.recovery.find_damage import find_damage
from cached_session.journal.recovery.report import NOTHING_LOST, RecoveryReport
from cached_session.journal.tables import schema
from cached_session.journal.tables.calls import turn_of_calls
from cached_session.journal.tables.states import ACKED
from tests.golden.test_golden_journals import FORMATS, recorded, write_journal
from tests.journal_rows import OPS
from tests.unit.journal.recovery.recovery_support import change_cells, overwrite_page

T = TypeVar("T")
WRITERS = WriterIds("retired0", "afresher")
UNSENT = f"SELECT writer, counter, state, error, digest FROM {OPS} WHERE state <> {ACKED}"
TALK = "talk"


@pytest.fixture(params=FORMATS)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def path(tmp_path: Path, version: int) -> Path:
    """The golden journal of a format, which no code of the current format has opened."""
    return write_journal(tmp_path / "agent.db", version)


def raw(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def unsent(path: Path) -> set[tuple[object, ...]]:
    with closing(raw(path)) as conn:
        return set(conn.execute(UNSENT).fetchall())


def expected_unsent(version: int) -> set[tuple[object, ...]]:
    return {_without_note(row) for row in recorded(version)["operations"] if row[2] != ACKED}


def _without_note(row: list[object]) -> tuple[object, ...]:
    """Return a recorded operation without the note that it was sent again. A copied operation is
    sent again in any case."""
    writer, counter, state, error, digest = row
    return (writer, counter, state, None if error == "sent again" else error, digest)


async def repeated(call: Callable[[], Awaitable[T]]) -> T:
    """Return the result of a call whose first attempt may find damage."""
    try:
        return await call()
    except JournalError:
        return await call()


async def check_recovered(path: Path, version: int) -> str:
    """Check that the file is recovered by its opening and lacks nothing unsent; return the
    report."""
    async with SessionCache(path) as cache:
        for session_id, expected in recorded(version)["sessions"].items():
            session = cache.session(session_id)
            assert await repeated(session.get_items) == expected["items"]
            await repeated(session.entries)
            parked = [(one.dot, one.items) for one in await repeated(session.parked)]
            assert parked == [((row[1], row[2]), row[6]) for row in expected["parked"]]
        report = (await repeated(lambda: asyncio.to_thread(session.status))).salvaged
    assert unsent(path) == expected_unsent(version)
    with closing(raw(path)) as conn:
        assert conn.execute("PRAGMA user_version").fetchone() == (schema.FORMAT,)
        assert {row[0] for row in conn.execute("SELECT DISTINCT version FROM ops")} == {1}
    return str(report)


def test_operations_of_an_old_file_are_copied(
    path: Path, new: sqlite3.Connection, version: int
) -> None:
    """Each has its number of the wire version, digest, state and error. Calls are indexed, and
    claims and deletions are copied."""
    report = RecoveryReport(5000, "damage", "1:2")
    with closing(raw(path)) as old:
        report = copy_journal([old], new, report, WRITERS)
    assert report.lost == ()
    operations = recorded(version)["operations"]
    assert report.operations == len(operations)
    rows = new.execute(f"SELECT writer, counter, state, error, digest FROM {OPS}")
    assert set(map(_without_note, operations)) == set(rows.fetchall())
    assert new.execute("SELECT DISTINCT version, branch, key_id FROM ops").fetchall() == [
        (1, "", "")
    ]
    for call_id in ("call_1", "call_2", "call_3"):
        assert turn_of_calls(new, 1, [call_id]) is not None
    for table in ("claims", "forgets"):
        (copied,) = new.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert copied == len(recorded(version)["tables"][table])


@pytest.mark.parametrize("name", ["gates", "outbox", "frontier", "holes"])
async def test_a_damaged_page_of_an_old_file_loses_nothing(
    path: Path, version: int, name: str
) -> None:
    """The file is set aside when it is opened, and the new one has all operations."""
    overwrite_page(path, name)
    report = await check_recovered(path, version)
    # The migration does not read every table: it may succeed, and the damage is found later.
    assert NOTHING_LOST in report or report == "None"


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("sessions", "guard = NULL WHERE id = 1"),
        ("ops", "live = 'x' WHERE seq = 1"),
        ("ops", "session = NULL WHERE seq = 1"),
        ("parts", "kind = 7"),
        ("items", "codec = x'00' WHERE counter = 1 AND session = 1"),
    ],
)
async def test_a_damaged_cell_of_an_old_file_is_found(path: Path, table: str, change: str) -> None:
    """SQLite does not check its value, so the search for damage does."""
    with closing(raw(path)) as conn:
        change_cells(conn, table, change)
    assert find_damage(str(path), "the journal", 0.0) is not None


def test_an_intact_old_file_has_no_damage(path: Path) -> None:
    """The check of cells knows which columns an old file has."""
    before = path.read_bytes()
    assert find_damage(str(path), "the journal", 0.0) is None
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("table", "change"),
    [("items", "writer = CAST(x'80ff' AS TEXT)"), ("ops", "stamp = NULL")],
)
async def test_damage_that_stops_the_migration_is_recovered(
    path: Path, table: str, change: str
) -> None:
    """A row that the new tables cannot take does not make the file unusable for ever."""
    with closing(raw(path)) as conn:
        where = "WHERE counter = 6 AND writer LIKE 'own%' AND session = 1"
        change_cells(conn, table, f"{change} {where}")
    async with SessionCache(path) as cache:
        session = cache.session(TALK)
        found = await repeated(session.get_items)
        await session.add_items([{"role": "user", "content": "on"}])
        assert "1 loss" in str(session.status().salvaged)
    words = [item.get("content") for item in found]  # type: ignore[union-attr]
    assert "what is the weather?" in words
    assert "sent once" not in words


@pytest.mark.parametrize("table", ["parts", "holes", "ops"])
def test_an_old_file_without_a_table_is_damaged(path: Path, table: str) -> None:
    """Its migration would fail."""
    with closing(raw(path)) as conn:
        conn.execute(f"DROP TABLE {table}")
    assert find_damage(str(path), "the journal", 0.0) == f"malformed schema: no table {table}"


def test_a_migrated_file_has_no_damage(path: Path) -> None:
    """Every row that the migration writes passes the checks of the current format."""
    with closing(open_connection.connect(str(path), 0, "normal")) as conn:
        schema.prepare(conn, str(path))
    assert find_damage(str(path), "the journal", 0.0) is None
