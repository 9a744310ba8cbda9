"""Databases that the Agents SDK's own sessions wrote, carried over."""

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


async def carry(journal: Path, path: Path, name: str = "talk", **options: Any) -> Any:
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
    """What the SDK's session gives is what ours gives afterwards."""
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
    """It is known by its content: the file may even have been moved meanwhile."""
    await write(database, "talk", *range(300))
    await carry(journal, database)
    moved = database.rename(database.with_name("moved.db"))
    report = await carry(journal, moved)
    assert (report.added, report.known) == (0, 300)
    assert len(await read(journal, "talk")) == 300


async def test_what_the_source_gained_since_comes_with_the_next_import(
    database: Path, journal: Path
) -> None:
    """Only the new items, behind whatever was said here meanwhile."""
    await write(database, "talk", 1, 2)
    await carry(journal, database)
    async with CachedSession("talk", journal=journal) as session:
        await session.add_items([message(100)])
    await write(database, "talk", 3)
    assert (await carry(journal, database)).added == 1
    assert await read(journal, "talk") == [message(number) for number in (1, 2, 100, 3)]


async def test_a_source_that_was_rewritten_is_refused_and_nothing_is_added(
    database: Path, journal: Path
) -> None:
    """Fewer items, or others in their place: guessing could bring something twice."""
    await write(database, "talk", 1, 2, 3)
    await carry(journal, database)
    source = SQLiteSession("talk", database)
    await source.pop_item()
    with pytest.raises(InvalidArgument, match="removed or rewritten"):
        await carry(journal, database)
    await source.add_items([message(9), message(10)])
    source.close()
    with pytest.raises(InvalidArgument, match="removed or rewritten"):
        await carry(journal, database)
    assert await read(journal, "talk") == [message(number) for number in (1, 2, 3)]


async def test_an_import_that_was_killed_goes_on_where_it_stopped(
    database: Path, journal: Path
) -> None:
    """The mark is in the transaction of its batch: nothing is missing and nothing is twice."""
    count = BATCH_ITEMS * 3 + 7
    await write(database, "talk", *range(count))
    script = Path(__file__).with_name("other_import.py")
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, script, journal, database], check=False
    )
    assert done.returncode == -signal.SIGKILL
    report = await carry(journal, database)
    assert report.known == BATCH_ITEMS
    assert report.added == count - BATCH_ITEMS
    assert await read(journal, "talk") == [message(number) for number in range(count)]


async def test_two_imports_at_once_bring_it_once(
    database: Path, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds the mark moved under its hands stores nothing and says so."""
    await write(database, "talk", *range(10))
    append = import_marks.append_marked

    def after_another(conn: Any, *arguments: Any, **keywords: Any) -> Any:
        monkeypatch.setattr(import_marks, "append_marked", append)
        other = dict(keywords, after=import_marks.Mark(10, "of another"))
        append(conn, *arguments, **other)
        return append(conn, *arguments, **keywords)

    monkeypatch.setattr(import_marks, "append_marked", after_another)
    with pytest.raises(JournalError, match="is running"):
        await carry(journal, database)
    assert len(await read(journal, "talk")) == 10


async def test_a_database_in_use_is_read_and_its_writer_is_never_locked_out(
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

    report = await carry(journal, database, on_progress=go_on)
    writer.close()
    assert report.added == BATCH_ITEMS * 4


async def test_an_import_leaves_the_database_as_it_was(database: Path, journal: Path) -> None:
    """It is opened for reading only."""
    await write(database, "talk", 1, 2)
    before = database.read_bytes()
    await carry(journal, database)
    assert database.read_bytes() == before


async def test_progress_tells_how_far_it_is(database: Path, journal: Path) -> None:
    """After each batch: looked at, added, and of how many."""
    await write(database, "talk", *range(BATCH_ITEMS + 1))
    seen: list[ImportProgress] = []
    await carry(journal, database, on_progress=seen.append)
    assert [(one.done, one.total) for one in seen] == [
        (BATCH_ITEMS, BATCH_ITEMS + 1),
        (BATCH_ITEMS + 1, BATCH_ITEMS + 1),
    ]


async def test_rows_that_are_no_items_are_left_out_and_counted(
    database: Path, journal: Path
) -> None:
    """A damaged row, and a number that is none, do not keep their neighbours."""
    await write(database, "talk", 1)
    with closing(sqlite3.connect(database)) as conn:
        for bad in ("{", '{"a": NaN}', b"\xff\xfe"):
            conn.execute(
                "INSERT INTO agent_messages (session_id, message_data) VALUES ('talk', ?)", (bad,)
            )
        conn.commit()
    await write(database, "talk", 2)
    report = await carry(journal, database)
    assert (report.added, report.unreadable) == (2, 3)
    assert await read(journal, "talk") == [message(1), message(2)]


async def test_a_branch_of_an_advanced_session_is_carried_over_as_it_reads(
    database: Path, journal: Path
) -> None:
    """`main` by default, another by its name; the items before the fork belong to both."""
    source = AdvancedSQLiteSession(session_id="talk", db_path=database, create_tables=True)
    for number in (1, 2, 3, 4, 5):
        await source.add_items([message(number)])
    branch = await source.create_branch_from_turn(2, "other")
    await source.add_items([message(9)])
    main = await source.get_items(branch_id="main")
    other = await source.get_items(branch_id=branch)
    assert main != other
    await carry(journal, database)
    await carry(journal, database, "fork", source_session_id="talk", branch=branch)
    source.close()
    assert await read(journal, "talk") == main
    assert await read(journal, "fork") == other


async def test_a_branch_that_is_not_there_is_named_with_those_that_are(
    database: Path, journal: Path
) -> None:
    """Nothing is imported under a mistyped name."""
    source = AdvancedSQLiteSession(session_id="talk", db_path=database, create_tables=True)
    await source.add_items([message(1)])
    source.close()
    with pytest.raises(InvalidArgument, match=r"'man'.*'main'"):
        await carry(journal, database, branch="man")


async def test_tables_with_other_names_are_found_by_name(database: Path, journal: Path) -> None:
    """As the SDK lets its caller name them."""
    source = SQLiteSession("talk", database, sessions_table="s", messages_table="my_messages")
    await source.add_items([message(1)])
    source.close()
    with pytest.raises(InvalidArgument, match="agent_messages"):
        await carry(journal, database)
    assert (await carry(journal, database, messages_table="my_messages")).added == 1


@pytest.mark.parametrize("content", [b"", b"no database at all " * 100])
async def test_a_file_that_is_no_database_is_refused(
    database: Path, journal: Path, content: bytes
) -> None:
    """Its path is in the message."""
    database.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"agents\.db"):
        await carry(journal, database)


async def test_any_items_can_be_imported_once(journal: Path) -> None:
    """`import_items` takes what another store gives, plain or asynchronous, and knows it again."""

    async def later(count: int) -> Any:
        for number in range(count):
            yield message(number)

    async with CachedSession("talk", journal=journal) as session:
        first = await session.import_items(map(message, range(450)), source="redis:talk")
        again = await session.import_items(later(460), source="redis:talk")
    assert (first.added, again.added, again.known) == (450, 10, 450)
    assert await read(journal, "talk") == [message(number) for number in range(460)]


@pytest.mark.parametrize("left", [range(1, 9), range(0), range(9, 12)])
async def test_items_of_a_source_that_begins_with_another_are_refused(
    journal: Path, left: range
) -> None:
    """A list of which the oldest are dropped is no other source: it has its name. What is left of
    it would come twice."""
    async with CachedSession("talk", journal=journal) as session:
        await session.import_items(map(message, range(5)), source="redis:talk")
        with pytest.raises(InvalidArgument, match="5 items"):
            await session.import_items(map(message, left), source="redis:talk")
        other = await session.import_items(map(message, range(1, 3)), source="redis:other")
        again = await session.import_items(map(message, range(6)), source="redis:talk")
    assert (other.added, again.added, again.known) == (2, 1, 5)
    assert await read(journal, "talk") == [message(number) for number in (0, 1, 2, 3, 4, 1, 2, 5)]


async def test_marks_do_not_weigh_on_a_status(journal: Path) -> None:
    """A status reads the facts of the file, not the marks of thousands of imports."""
    from cached_session.journal.tables.meta import read_meta

    async with CachedSession("talk", journal=journal) as session:
        await session.import_items([message(1)], source="x")
    with closing(sqlite3.connect(journal)) as conn:
        sql = "SELECT count(*) FROM meta WHERE key LIKE 'import:%'"
        assert conn.execute(sql).fetchone() == (2,)
        assert not [key for key in read_meta(conn) if key.startswith("import:")]
