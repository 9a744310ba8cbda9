"""Imports of databases that the Agents SDK's own sessions wrote."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from agents import SQLiteSession
from agents.extensions.memory import AdvancedSQLiteSession

from cached_session import (
    CachedSession,
    ImportProgress,
    InvalidArgument,
    JournalError,
    SessionCache,
    import_sqlite,
    import_sqlite_session,
    sqlite_sessions,
)
from cached_session.engine.importer import BATCH_ITEMS
from cached_session.journal.tables import import_marks


def message(number: int) -> Any:
    return {"role": "user" if number % 2 else "assistant", "content": f"message {number} ü 漢"}


async def write(path: Path, name: str, *numbers: int) -> None:
    source = SQLiteSession(name, path)
    await source.add_items([message(number) for number in numbers])
    source.close()


async def read(journal: Path, name: str) -> list[Any]:
    async with CachedSession(name, journal=journal) as session:
        return await session.get_items()


async def import_database(journal: Path, path: Path, name: str = "talk", **options: Any) -> Any:
    async with CachedSession(name, journal=journal) as session:
        return await import_sqlite_session(session, path, **options)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


async def test_every_session_keeps_its_id_its_items_and_their_order(
    database: Path, journal: Path
) -> None:
    """Our session returns afterwards what the SDK's session returns."""
    await write(database, "alice", *range(5))
    await write(database, "bob", *range(700))
    async with SessionCache(journal) as cache:
        reports = await import_sqlite(cache, database)
    assert [(report.session_id, report.added) for report in reports] == [("alice", 5), ("bob", 700)]
    for name in sqlite_sessions(database):
        source = SQLiteSession(name, database)
        assert await read(journal, name) == await source.get_items()
        source.close()


async def test_a_second_import_adds_nothing(database: Path, journal: Path) -> None:
    """The source is recognised by its content, also after the file was moved."""
    await write(database, "talk", *range(300))
    await import_database(journal, database)
    moved = database.rename(database.with_name("moved.db"))
    report = await import_database(journal, moved)
    assert (report.added, report.known) == (0, 300)
    assert len(await read(journal, "talk")) == 300


async def test_the_next_import_adds_only_new_items(database: Path, journal: Path) -> None:
    """New items of the source are added behind the items that were added here since."""
    await write(database, "talk", 1, 2)
    await import_database(journal, database)
    async with CachedSession("talk", journal=journal) as session:
        await session.add_items([message(100)])
    await write(database, "talk", 3)
    assert (await import_database(journal, database)).added == 1
    assert await read(journal, "talk") == [message(number) for number in (1, 2, 100, 3)]


async def test_a_rewritten_source_is_refused_and_nothing_is_added(
    database: Path, journal: Path
) -> None:
    """The source has fewer items, or others at their positions, so that an import could duplicate
    items."""
    await write(database, "talk", 1, 2, 3)
    await import_database(journal, database)
    source = SQLiteSession("talk", database)
    await source.pop_item()
    with pytest.raises(InvalidArgument, match="removed or rewritten"):
        await import_database(journal, database)
    await source.add_items([message(9), message(10)])
    source.close()
    with pytest.raises(InvalidArgument, match="removed or rewritten"):
        await import_database(journal, database)
    assert await read(journal, "talk") == [message(number) for number in (1, 2, 3)]


async def test_a_killed_import_is_finished_by_the_next(database: Path, journal: Path) -> None:
    """The mark is in the transaction of its batch, so that nothing is missing or duplicated."""
    count = BATCH_ITEMS * 3 + 7
    await write(database, "talk", *range(count))
    script = Path(__file__).with_name("other_import.py")
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, script, journal, database], check=False
    )
    assert done.returncode == -signal.SIGKILL
    report = await import_database(journal, database)
    assert report.known == BATCH_ITEMS
    assert report.added == count - BATCH_ITEMS
    assert await read(journal, "talk") == [message(number) for number in range(count)]


async def test_two_concurrent_imports_add_the_items_once(
    database: Path, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import whose mark was moved by another one stores nothing and raises."""
    await write(database, "talk", *range(10))
    append = import_marks.append_marked

    def after_another(conn: Any, *arguments: Any, **keywords: Any) -> Any:
        monkeypatch.setattr(import_marks, "append_marked", append)
        other = dict(keywords, after=import_marks.Mark(10, "of another"))
        append(conn, *arguments, **other)
        return append(conn, *arguments, **keywords)

    monkeypatch.setattr(import_marks, "append_marked", after_another)
    with pytest.raises(JournalError, match="is running"):
        await import_database(journal, database)
    assert len(await read(journal, "talk")) == 10


async def test_an_import_never_locks_the_writer_of_the_database_out(
    database: Path, journal: Path
) -> None:
    """Between batches the import holds no lock, also where the database has no write-ahead log."""
    await write(database, "talk", *range(BATCH_ITEMS * 4))
    with closing(sqlite3.connect(database)) as conn:
        conn.execute("PRAGMA journal_mode = DELETE")
    writer = sqlite3.connect(database, timeout=0, isolation_level=None)

    def go_on(progress: ImportProgress) -> None:
        writer.execute(
            "INSERT INTO agent_messages (session_id, message_data) VALUES ('other', '{}')"
        )

    report = await import_database(journal, database, on_progress=go_on)
    writer.close()
    assert report.added == BATCH_ITEMS * 4


async def test_an_import_does_not_change_the_database(database: Path, journal: Path) -> None:
    """The database is opened read-only."""
    await write(database, "talk", 1, 2)
    before = database.read_bytes()
    await import_database(journal, database)
    assert database.read_bytes() == before


async def test_progress_is_reported_after_each_batch(database: Path, journal: Path) -> None:
    """The callback gets the read, the added and the total number of items."""
    await write(database, "talk", *range(BATCH_ITEMS + 1))
    seen: list[ImportProgress] = []
    await import_database(journal, database, on_progress=seen.append)
    assert [(one.done, one.total) for one in seen] == [
        (BATCH_ITEMS, BATCH_ITEMS + 1),
        (BATCH_ITEMS + 1, BATCH_ITEMS + 1),
    ]


async def test_invalid_rows_are_left_out_and_counted(database: Path, journal: Path) -> None:
    """A damaged row, and one with an invalid number, do not stop the import of the others."""
    await write(database, "talk", 1)
    with closing(sqlite3.connect(database)) as conn:
        for bad in ("{", '{"a": NaN}', b"\xff\xfe"):
            conn.execute(
                "INSERT INTO agent_messages (session_id, message_data) VALUES ('talk', ?)", (bad,)
            )
        conn.commit()
    await write(database, "talk", 2)
    report = await import_database(journal, database)
    assert (report.added, report.unreadable) == (2, 3)
    assert await read(journal, "talk") == [message(1), message(2)]


async def test_a_branch_of_an_advanced_session_is_imported(database: Path, journal: Path) -> None:
    """`main` is the default, and another branch is selected by its name. The items before the fork
    belong to both."""
    source = AdvancedSQLiteSession(session_id="talk", db_path=database, create_tables=True)
    for number in (1, 2, 3, 4, 5):
        await source.add_items([message(number)])
    branch = await source.create_branch_from_turn(2, "other")
    await source.add_items([message(9)])
    main = await source.get_items(branch_id="main")
    other = await source.get_items(branch_id=branch)
    assert main != other
    await import_database(journal, database)
    await import_database(journal, database, "fork", source_session_id="talk", branch=branch)
    source.close()
    assert await read(journal, "talk") == main
    assert await read(journal, "fork") == other


async def test_a_missing_branch_is_reported_with_the_existing_ones(
    database: Path, journal: Path
) -> None:
    """Nothing is imported under a mistyped name."""
    source = AdvancedSQLiteSession(session_id="talk", db_path=database, create_tables=True)
    await source.add_items([message(1)])
    source.close()
    with pytest.raises(InvalidArgument, match=r"'man'.*'main'"):
        await import_database(journal, database, branch="man")


async def test_tables_with_other_names_are_found_by_name(database: Path, journal: Path) -> None:
    """The SDK lets its caller name the tables."""
    source = SQLiteSession("talk", database, sessions_table="s", messages_table="my_messages")
    await source.add_items([message(1)])
    source.close()
    with pytest.raises(InvalidArgument, match="agent_messages"):
        await import_database(journal, database)
    assert (await import_database(journal, database, messages_table="my_messages")).added == 1


@pytest.mark.parametrize("content", [b"", b"no database at all " * 100])
async def test_a_file_that_is_not_a_database_is_refused(
    database: Path, journal: Path, content: bytes
) -> None:
    """The message contains its path."""
    database.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"agents\.db"):
        await import_database(journal, database)


async def test_items_of_any_store_are_imported_once(journal: Path) -> None:
    """`import_items` takes a plain or asynchronous iterable of items, and recognises it the next
    time."""

    async def later(count: int) -> Any:
        for number in range(count):
            yield message(number)

    async with CachedSession("talk", journal=journal) as session:
        first = await session.import_items(map(message, range(450)), source="redis:talk")
        again = await session.import_items(later(460), source="redis:talk")
    assert (first.added, again.added, again.known) == (450, 10, 450)
    assert await read(journal, "talk") == [message(number) for number in range(460)]


@pytest.mark.parametrize("left", [range(1, 9), range(0), range(9, 12)])
async def test_a_source_that_lost_its_oldest_items_is_refused(journal: Path, left: range) -> None:
    """A list from which the oldest items were dropped has the same name. Importing the rest would
    duplicate it."""
    async with CachedSession("talk", journal=journal) as session:
        await session.import_items(map(message, range(5)), source="redis:talk")
        with pytest.raises(InvalidArgument, match="5 items"):
            await session.import_items(map(message, left), source="redis:talk")
        other = await session.import_items(map(message, range(1, 3)), source="redis:other")
        again = await session.import_items(map(message, range(6)), source="redis:talk")
    assert (other.added, again.added, again.known) == (2, 1, 5)
    assert await read(journal, "talk") == [message(number) for number in (0, 1, 2, 3, 4, 1, 2, 5)]


async def test_import_marks_do_not_slow_a_status(journal: Path) -> None:
    """A status reads the facts of the file, and not the marks of thousands of imports."""
    from cached_session.journal.tables.meta import read_meta

    async with CachedSession("talk", journal=journal) as session:
        await session.import_items([message(1)], source="x")
    with closing(sqlite3.connect(journal)) as conn:
        sql = "SELECT count(*) FROM meta WHERE key LIKE 'import:%'"
        assert conn.execute(sql).fetchone() == (2,)
        assert not [key for key in read_meta(conn) if key.startswith("import:")]
