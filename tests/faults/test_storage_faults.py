"""Damaged, removed and full files raise a clear error and lose no acknowledged item."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession, JournalCorrupt, JournalError, JournalFull, diagnose
from cached_session.devserver import DevServer
from tests.faults.children import child, wait_for_line

BESIDE = """
async with CachedSession("s", journal=path) as session:
    await words(session)
    tell("open")
    await asyncio.to_thread(wait)
    await add(session, "beside")
    tell("done")
    await asyncio.to_thread(wait)
"""
COMES_NEW = """
async with CachedSession("s", journal=path) as session:
    await add(session, "new")
    tell(await words(session))
"""


def text_message(*words: object) -> list[Any]:
    return [{"role": "user", "content": str(word)} for word in words]


async def words(session: CachedSession) -> list[str]:
    return [str(item["content"]) for item in await session.get_items()]  # type: ignore[index]


def overwrite(path: Path, table: str, byte: bytes = b"\xff", *, skip: int = 0) -> None:
    """Damage one page of a table of a closed journal."""
    with closing(sqlite3.connect(path)) as conn:
        (root,) = conn.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)
        ).fetchone()
        (size,) = conn.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * size + skip)
        file.write(byte * (size - skip))


def set_aside_files(path: Path) -> list[Path]:
    return [
        found
        for found in path.parent.glob("*.damaged-*")
        if not found.name.endswith(("-wal", "-shm"))
    ]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


async def test_a_damaged_index_loses_nothing(journal: Path) -> None:
    """When the index of the history is damaged, the file is set aside, every operation continues in
    a new file under its own dot, and the status reports it."""
    async with CachedSession("s", journal=journal) as session:
        for word in "abc":
            await session.add_items(text_message(word))
        await session.pop_item()
        before = await session.entries()
    overwrite(journal, "place")
    async with CachedSession("s", journal=journal) as session:
        with pytest.raises(JournalCorrupt, match="next call sets it aside"):
            await session.add_items(text_message("refused"))
        assert await session.entries() == before
        status = session.status()
        assert (status.pending, status.items) == (4, 2)
        assert status.salvaged is not None
        assert "nothing unsent was lost" in status.salvaged
        await session.add_items(text_message("d"))
        assert await words(session) == ["a", "b", "d"]
    (aside,) = set_aside_files(journal)
    assert str(aside) in status.salvaged
    with closing(sqlite3.connect(journal)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.promise(number=9)
async def test_lost_operations_are_reported_and_no_removal_is_recorded(journal: Path) -> None:
    """The report names the unsent operations on the damaged page, and the others and new ones are
    kept."""
    async with CachedSession("s", journal=journal) as session:
        for number in range(40):
            await session.add_items(text_message(f"{number:03d}" + "x" * 1000))
    with closing(sqlite3.connect(journal)) as conn:
        (size,) = conn.execute("PRAGMA page_size").fetchone()
    data = bytearray(journal.read_bytes())
    at = data.index(b"010xxx") // size * size
    data[at : at + size] = b"\xff" * size
    journal.write_bytes(data)
    async with CachedSession("s", journal=journal) as session:
        with pytest.raises(JournalCorrupt):
            await session.get_items()
        kept = [int(word[:3]) for word in await words(session)]
        lost = [number for number in range(40) if number not in kept]
        assert kept == sorted(kept)
        assert 0 < len(lost) <= 10
        status = session.status()
        assert status.salvaged is not None
        for number in lost:
            assert re.search(rf"unsent operation \w+:{number + 1} in session 's'", status.salvaged)
        assert status.pending == 40 - len(lost)
        await session.add_items(text_message("on"))
        assert (await words(session))[-1] == "on"


async def test_damage_found_on_opening_is_recovered_immediately(journal: Path) -> None:
    """When the schema cannot be read, the first call works, and the status reports the recovery."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
    data = bytearray(journal.read_bytes())
    data[100:4096] = b"\xff" * 3996
    journal.write_bytes(data)
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("b"))
        assert await words(session) == ["b"]
        assert "operations from row 1 on" in str(session.status().salvaged)
    (aside,) = set_aside_files(journal)
    assert aside.read_bytes() == bytes(data)


SCHEMA_DAMAGE = {
    "another column": (b"    conflicted INTEGER", b"    conflictod INTEGER"),
    "a column that is no text": (b"    conflicted INTEGER", b"    conflict\x80\xff INTEGER"),
    "no statement": (b"CREATE TABLE ops (", b"CREATE TABLE ops )"),
    "another table's name": (b"opsops", b"opqops"),
}


@pytest.mark.parametrize("what", SCHEMA_DAMAGE)
async def test_a_spoiled_schema_loses_nothing(journal: Path, what: str) -> None:
    """When one word of the schema changed, the opening reads the tables with the known schema, and
    everything continues in a new file."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
        await session.add_items(text_message("b"))
    before, after = SCHEMA_DAMAGE[what]
    data = journal.read_bytes()
    assert data.count(before) == 1
    spoiled = data.replace(before, after)
    journal.write_bytes(spoiled)
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("c"))
        assert (await words(session))[:2] == ["a", "b"]
        assert "nothing unsent was lost" in str(session.status().salvaged)
    (aside,) = set_aside_files(journal)
    assert aside.read_bytes() == spoiled
    before_and_after = []
    for _ in range(2):
        found = {finding.check: finding for finding in await diagnose(journal)}
        before_and_after.append((found["salvaged"].level, "set aside" in found))
        aside.unlink(missing_ok=True)
    assert before_and_after == [("warn", True), ("ok", False)]


async def test_an_unknown_format_number_is_damage(journal: Path) -> None:
    """When the header of a journal names format 0, every operation continues in a new file."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
    with closing(sqlite3.connect(journal)) as conn:
        conn.execute("PRAGMA user_version = 0")
    async with CachedSession("s", journal=journal) as session:
        assert await words(session) == ["a"]
        assert "format number 0 is not valid" in str(session.status().salvaged)


@pytest.mark.parametrize("how", ["closed", "left open"])
async def test_a_program_that_stops_at_its_first_error_leaves_a_recovered_journal(
    journal: Path, how: str
) -> None:
    """A process that makes no second call recovers the journal, whether it closes it or not.
    Command-line calls that are repeated behave like this."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
    overwrite(journal, "place")
    code = """
import asyncio, sys
from cached_session import CachedSession
async def main():
    session = CachedSession("s", journal=sys.argv[1])
    try:
        await session.add_items([{"role": "user", "content": "refused"}])
    finally:
        if sys.argv[2] == "closed":
            await session.close()
asyncio.run(main())
"""
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, journal, how],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "JournalCorrupt" in ended.stderr
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("b"))
        assert await words(session) == ["a", "b"]
        assert "nothing unsent was lost" in str(session.status().salvaged)
    assert len(set_aside_files(journal)) == 1


async def test_items_lost_by_damage_come_back_from_the_server(journal: Path) -> None:
    """Acknowledged items on damaged pages are fetched again, and unsent ones are copied."""
    with DevServer() as server:
        async with CachedSession.from_url("s", url=server.url, journal=journal) as session:
            await session.add_items(text_message("a", "b"))
            await session.flush(timeout=20)
        async with CachedSession("s", journal=journal) as session:
            await session.add_items(text_message("unsent"))
        overwrite(journal, "frontier")
        async with CachedSession.from_url("s", url=server.url, journal=journal) as session:
            with pytest.raises(JournalError):
                await session.add_items(text_message("refused"))
            await session.sync(timeout=20)
            assert await words(session) == ["a", "b", "unsent"]
            await session.add_items(text_message("c"))
            await session.flush(timeout=20)
        async with CachedSession.from_url("s", url=server.url, journal=":memory:") as other:
            await other.sync(timeout=20)
            assert await words(other) == ["a", "b", "unsent", "c"]


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_removed_journal_continues_in_a_new_file(journal: Path, replaced: bool) -> None:
    """After the file and its log were deleted, or replaced by another journal, acknowledged items
    are copied from the file that is still open, and the counters of its writer are not reused."""
    other = journal.with_name("other.db")
    async with CachedSession("s", journal=other) as session:
        await session.add_items(text_message("theirs"))
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
        await session.add_items(text_message("b"))
        dots = {(entry.writer, entry.counter) for entry in await session.entries()}
        if replaced:
            other.replace(journal)
        else:
            journal.unlink()
        for suffix in ("-wal", "-shm"):
            Path(f"{journal}{suffix}").unlink()
        await session.add_items(text_message("c"))
        expected = ["theirs", "a", "b", "c"] if replaced else ["a", "b", "c"]
        assert await words(session) == expected
        assert "was deleted or replaced" in str(session.status().salvaged)
        entries = await session.entries()
        assert len({(entry.writer, entry.counter) for entry in entries}) == len(entries)
        assert entries[-1].writer not in {writer for writer, _ in dots}
    async with CachedSession("s", journal=journal) as session:
        assert await words(session) == expected


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
@pytest.mark.parametrize("carried_over", [False, True])
async def test_a_leftover_log_is_not_applied_to_the_new_file(
    journal: Path, how: str, carried_over: bool
) -> None:
    """When only the database file is removed, its log and index still belong to the open file.
    Acknowledged items are kept, and the removed file is complete in itself."""
    other = journal.with_name("other.db")
    async with CachedSession("s", journal=other) as session:
        await session.add_items(text_message("theirs"))
    async with CachedSession("s", journal=journal) as session:
        for number in range(30):
            await session.add_items(text_message(f"{number}"))
        if carried_over:
            await session._engine.journal.maintain(
                lambda conn: conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            )
            await session.add_items(text_message("30"))
        spoken = await words(session)
        assert len(spoken) == 30 + carried_over
        if how == "moved":
            journal.replace(journal.with_name("elsewhere.db"))
        elif how == "deleted":
            journal.unlink()
        else:
            other.replace(journal)
        expected = (["theirs"] if how == "replaced" else []) + spoken
        await session.add_items(text_message("last"))
        assert await words(session) == [*expected, "last"]
    async with CachedSession("s", journal=journal) as session:
        assert await words(session) == [*expected, "last"]
    assert list(journal.parent.glob("*.left-*")) == []
    if how == "moved":
        async with CachedSession("s", journal=journal.with_name("elsewhere.db")) as session:
            assert await words(session) == spoken


@pytest.mark.parametrize("how", ["deleted", "moved"])
async def test_a_new_file_does_not_use_the_log_of_an_open_one(journal: Path, how: str) -> None:
    """A process that opens the path first creates its own file and does not touch the files that
    others have open. All items end in the new file, once."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
        with child(BESIDE, journal) as beside, child(BESIDE, journal) as after:
            assert wait_for_line(beside) == "open"
            assert beside.stdin is not None
            assert after.stdin is not None
            assert wait_for_line(after) == "open"
            await session.add_items(text_message("b"))
            if how == "deleted":
                journal.unlink()
            else:
                journal.replace(journal.with_name("elsewhere.db"))
            with child(COMES_NEW, journal) as new:
                assert wait_for_line(new) == "['new']"
            for process in (beside, after):
                print("go", file=process.stdin, flush=True)
                assert wait_for_line(process) == "done"
        await session.add_items(text_message("last"))
        spoken = await words(session)
        assert sorted(spoken) == sorted(["a", "b", "new", "beside", "beside", "last"])
    async with CachedSession("s", journal=journal) as session:
        assert await words(session) == spoken


async def test_a_journal_removed_before_closing_is_created_again(journal: Path) -> None:
    """Close notices the missing file, and the items are there at the next opening."""
    session = CachedSession("s", journal=journal)
    await session.add_items(text_message("a"))
    journal.unlink()
    for suffix in ("-wal", "-shm"):
        Path(f"{journal}{suffix}").unlink()
    await session.close()
    async with CachedSession("s", journal=journal) as again:
        assert await words(again) == ["a"]


async def test_a_foreign_file_at_the_path_is_refused_and_nothing_is_lost(journal: Path) -> None:
    """Each call raises while another program's database is at the path. Once it is gone, all items
    are kept."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
        foreign = journal.with_name("foreign.db")
        with closing(sqlite3.connect(foreign)) as conn:
            conn.execute("CREATE TABLE theirs (x)")
        for suffix in ("-wal", "-shm"):
            Path(f"{journal}{suffix}").unlink()
        foreign.replace(journal)
        before = journal.read_bytes()
        for _ in range(2):
            with pytest.raises(JournalError, match="another program"):
                await session.add_items(text_message("refused"))
        assert journal.read_bytes() == before
        journal.unlink()
        await session.add_items(text_message("b"))
        assert await words(session) == ["a", "b"]


async def test_a_full_disk_raises_and_stores_nothing(journal: Path) -> None:
    """At the page limit a write raises JournalFull and stores nothing, and works once there is
    space."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
        await session._engine.journal.write(
            lambda conn: conn.execute("PRAGMA max_page_count = 1").fetchall()
        )

        async def fill() -> None:
            for _ in range(100):
                await session.add_items(text_message("x" * 100_000))

        with pytest.raises(JournalFull, match="free some space"):
            await fill()
        kept = await words(session)
        assert kept[0] == "a"
        await session._engine.journal.write(
            lambda conn: conn.execute("PRAGMA max_page_count = 1000000").fetchall()
        )
        await session.add_items(text_message("b"))
        assert await words(session) == [*kept, "b"]
    assert set_aside_files(journal) == []


async def test_a_false_alarm_sets_no_file_aside(journal: Path) -> None:
    """A file that SQLite reports as malformed once, and as sound the next time, stays in place."""

    def cry(conn: sqlite3.Connection) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
        with pytest.raises(JournalCorrupt):
            await session._engine.journal.write(cry)
        await session.add_items(text_message("b"))
        assert await words(session) == ["a", "b"]
        assert session.status().salvaged is None
    assert set_aside_files(journal) == []


async def test_two_openings_that_detect_damage_together_recover_it_once(journal: Path) -> None:
    """Two openings of a damaged journal, as of two processes, produce one new file with all
    items."""
    from cached_session.engine.engine import Engine
    from cached_session.options import SyncOptions
    from cached_session.runtime import Runtime

    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
    overwrite(journal, "place")
    cores = [Engine(str(journal), SyncOptions(), Runtime()) for _ in range(2)]
    from cached_session.journal.tables import writes

    async def write(engine: Engine, word: str) -> None:
        for _ in range(3):
            author = engine.author()
            try:
                await engine.journal.write(
                    lambda conn, author=author: writes.append(  # type: ignore[misc]
                        conn, author, "s", [(f'{{"content":"{word}"}}', 0)], private=False
                    )
                )
            except JournalError:
                continue
            return
        raise AssertionError("it never went on")

    await asyncio.gather(write(cores[0], "b"), write(cores[1], "c"))
    for engine in cores:
        await engine.journal.close()
    async with CachedSession("s", journal=journal) as session:
        found = await words(session)
        assert found[0] == "a"
        assert sorted(found) == ["a", "b", "c"]
    assert len(set_aside_files(journal)) == 1


@pytest.mark.parametrize("name", ["j.db", "a b%20?mode=ro#c 漢.db"])
async def test_a_long_read_creates_no_file(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is removed between its check and a long read is not created again, empty and
    readable for everybody. The read fails, and the next call copies the items."""
    journal = tmp_path / name
    async with CachedSession("s", journal=journal) as session:
        await session.add_items([{"role": "user", "content": str(n)} for n in range(1000)])
        assert len(await session.get_items(20)) == 20
        for file in tmp_path.iterdir():
            file.rename(file.with_name(f"gone-{file.name}"))
        with monkeypatch.context() as patch:
            patch.setattr(session._engine.journal._connections, "must_open", lambda: False)
            with pytest.raises(JournalError):
                await session.get_items()
            assert not journal.exists()
        assert len(await session.get_items()) == 1000
