"""Recovery of damaged journals by whole sessions, with several processes and with crashes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cached_session import CachedSession, JournalCorrupt, diagnose, import_jsonl
from cached_session.devserver import DevServer
from cached_session.journal import open_connection
from cached_session.journal.recovery import copy_rows, recover
from cached_session.journal.recovery.copy_rows import WriterIds
from cached_session.journal.recovery.report import RecoveryReport
from cached_session.journal.sqlite import file_identity
from cached_session.journal.tables import schema
from tests.faults.children import child, resume, wait_for_line
from tests.faults.workload import text_message, words
from tests.journal_rows import spoil

RECOVER = """
session = CachedSession("s", journal=path)
await words(session)
if sys.argv[2] == "before the log is moved":
    os.link = lambda *_: os._exit(9)
else:
    replace_file._sync_directory = lambda _: os._exit(9)
session._engine.journal._connections.suspicion = "the test suspects damage"
await words(session)
"""
LOOK = """
async with CachedSession("s", journal=path) as session:
    tell(*await words(session))
"""
WRITE = """
async with CachedSession("s", journal=path) as session:
    tell("ready")
    wait()
    await add(session, sys.argv[2])
    tell("done")
"""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


def overwrite(path: Path, name: str) -> None:
    """Overwrite the first page of a table or an index of a journal that is not open."""
    with closing(sqlite3.connect(path)) as conn:
        (root,) = conn.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)
        ).fetchone()
        (size,) = conn.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)


def set_aside_files(path: Path) -> list[Path]:
    found = path.parent.glob(f"{path.name}.damaged-*")
    return [one for one in found if not one.name.endswith(("-wal", "-shm"))]


@pytest.mark.parametrize("moment", ["before the log is moved", "after"])
async def test_writes_during_an_interrupted_recovery_are_kept(journal: Path, moment: str) -> None:
    """A process dies in the middle of the swap. Another one, which has the old file open, goes on
    writing, and the next recovery copies that as well."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
    overwrite(journal, "gates")  # which these calls do not read
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("b"))
        with child(RECOVER, journal, moment) as dying:
            assert dying.wait(30) == 9
        assert Path(f"{journal}.salvaged").exists()
        await session.add_items(text_message("c"))
        with child(LOOK, journal) as third:
            assert wait_for_line(third) == "a b c"
        await session.add_items(text_message("d"))
        assert await words(session) == ["a", "b", "c", "d"]
        assert "nothing unsent was lost" in str(session.status().salvaged)
    assert len(set_aside_files(journal)) == 1
    left = [one.name for one in journal.parent.iterdir() if ".salvag" in one.name]
    assert left == ["agent.db.salvage-lock"]
    with closing(sqlite3.connect(journal)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_journal_deleted_during_an_interrupted_recovery_is_a_new_one(journal: Path) -> None:
    """The next opening creates an empty journal, which only its owner can read."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
    overwrite(journal, "gates")
    with child(RECOVER, journal, "before the log is moved") as dying:
        assert dying.wait(30) == 9
    journal.unlink()
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("b"))
        assert await words(session) == ["b"]
    assert journal.stat().st_mode & 0o777 == 0o600
    assert not Path(f"{journal}.salvaged").exists()


def test_what_was_written_after_the_copy_is_copied_later(journal: Path) -> None:
    """Damage can prevent a recovery from locking the old file, so that another process commits to
    it afterwards. That process copies its commits when it notices the swap, and the first report
    is kept."""
    from cached_session.journal.tables import writes

    fresh = journal.with_name("fresh.db")
    conns = []
    for path in (journal, fresh):
        conn = open_connection.connect(str(path), 1000, "normal")
        schema.prepare(conn, str(path))
        conns.append(conn)
    old, new = conns

    def add(conn: sqlite3.Connection, word: str) -> None:
        conn.execute("BEGIN IMMEDIATE")
        author = writes.Author("writer", 1_000, 600_000)
        writes.append(conn, author, "s", [(f'{{"content":"{word}"}}', 0)], private=False)
        conn.execute("COMMIT")

    add(old, "a")
    source = file_identity.file_id(str(journal))
    assert source is not None
    writers = WriterIds("retired", "fresh")
    report = RecoveryReport(1, "damage", f"{source[0]}:{source[1]}", set_aside="there")
    copy_rows.copy_journal([old], new, report, writers)
    add(old, "b")
    found = recover.copy_to_replacement(
        old, new, source, str(fresh), WriterIds("writer", "another")
    )
    assert (found.why, found.set_aside, found.operations) == ("damage", "there", 2)
    payloads = [row[0] for row in new.execute("SELECT body FROM ops ORDER BY counter")]
    assert payloads == ['{"content":"a"}', '{"content":"b"}']
    for conn in conns:
        conn.close()


async def test_two_processes_that_notice_damage_recover_the_file_once(journal: Path) -> None:
    """Both have the file open. There is one new file, and it has all items."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
    overwrite(journal, "place")
    with child(WRITE, journal, "b") as one, child(WRITE, journal, "c") as other:
        assert wait_for_line(one) == wait_for_line(other) == "ready"
        for process in (one, other):
            resume(process)
        assert wait_for_line(one) == wait_for_line(other) == "done"
        assert one.wait(30) == other.wait(30) == 0
    async with CachedSession("s", journal=journal) as session:
        found = await words(session)
        assert found[0] == "a"
        assert sorted(found) == ["a", "b", "c"]
    assert len(set_aside_files(journal)) == 1


async def test_a_damaged_table_of_sessions_loses_no_id(journal: Path) -> None:
    """The unique index has all ids as well."""
    for name in ("s", "t"):
        async with CachedSession(name, journal=journal) as session:
            await session.add_items(text_message(f"of {name}"))
    overwrite(journal, "sessions")
    for name in ("s", "t"):
        async with CachedSession(name, journal=journal) as session:
            try:
                found = await words(session)
            except JournalCorrupt:
                found = await words(session)
            assert found == [f"of {name}"]
            assert "nothing unsent was lost" in str(session.status().salvaged)


async def test_a_damaged_row_number_hides_no_later_rows(journal: Path) -> None:
    """The number of one row is higher than all others, and the next row cannot be read. The rows
    that were written later are copied."""
    async with CachedSession("s", journal=journal) as session:
        for number in range(12):
            await session.add_items(text_message(f"{number}"))
    with closing(sqlite3.connect(journal)) as conn:
        (root,) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ops'").fetchone()
    data = bytearray(journal.read_bytes())
    page = (root - 1) * 4096
    pointer = page + 8 + 2 * 5  # behind the header of a leaf, of the sixth row
    cell = page + int.from_bytes(data[pointer : pointer + 2], "big")
    assert data[page] == 13
    # A row begins with its length in two bytes, its number in one, and the length of its header.
    # Make the number of the sixth row one of two bytes.
    assert (data[cell + 1] < 128, data[cell + 2]) == (True, 6)
    data[cell + 2] |= 0x80
    # Give the seventh row more columns than it has.
    seventh = page + int.from_bytes(data[pointer + 2 : pointer + 4], "big")
    assert data[seventh + 2] == 7
    data[seventh + 3] = 0xFF
    journal.write_bytes(data)
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("on"))
        with pytest.raises(JournalCorrupt):
            await session.entries()
        found = await words(session)
        assert "operations in rows 6 to 7" in str(session.status().salvaged)
    assert found == [str(number) for number in range(12) if number not in (5, 6)] + ["on"]


async def test_an_index_that_has_other_rows_than_its_table_is_damage(journal: Path) -> None:
    """Its pages are intact, but each query that uses it for a missing row would fail. The doctor
    reports that, and the next calls recover the file."""
    async with CachedSession("s", journal=journal) as session:
        for number in range(12):
            await session.add_items(text_message(f"{number}"))
    with closing(sqlite3.connect(journal)) as conn:
        (root,) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'place'").fetchone()
    data = bytearray(journal.read_bytes())
    page = (root - 1) * 4096
    pointer = page + 8 + 2 * 5  # behind the header of a leaf, of the sixth row
    cell = page + int.from_bytes(data[pointer : pointer + 2], "big")
    assert data[page] == 10
    data[cell + data[cell]] = 99  # the last byte of the entry: the row number
    journal.write_bytes(data)
    (finding,) = [one for one in await diagnose(journal) if one.check == "journal"]
    assert finding.level == "fail"
    async with CachedSession("s", journal=journal) as session:
        with pytest.raises(JournalCorrupt):
            await session.search("5")
        assert [entry.item for entry in await session.search("5")] == text_message("5")
        assert await words(session) == [str(number) for number in range(12)]
        assert "nothing unsent was lost" in str(session.status().salvaged)


async def test_a_source_is_not_imported_again_after_a_recovery(
    journal: Path, tmp_path: Path
) -> None:
    """The marks of imports are copied with the items."""
    source = tmp_path / "words.jsonl"
    source.write_text("".join(f'{{"role":"user","content":"{number}"}}\n' for number in range(20)))
    async with CachedSession("s", journal=journal) as session:
        assert (await import_jsonl(session, source)).added == 20
    overwrite(journal, "place")
    async with CachedSession("s", journal=journal) as session:
        with pytest.raises(JournalCorrupt):
            await session.add_items(text_message("refused"))
        report = await import_jsonl(session, source)
        assert (report.added, report.known) == (0, 20)
        assert len(await words(session)) == 20
        assert session.status().salvaged is not None


async def test_doctor_reports_the_recovery_of_a_journal(journal: Path) -> None:
    """It says what was lost, where the old file is and what to do. The new file is intact."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
    overwrite(journal, "ops")
    session = CachedSession("s", journal=journal)
    with pytest.raises(JournalCorrupt):
        await session.get_items()
    assert await words(session) == []
    await session.close()
    found = {finding.check: finding for finding in await diagnose(journal)}
    (aside,) = set_aside_files(journal)
    assert found["journal"].level == "ok"
    assert found["salvaged"].level == "warn"
    assert "unsent operation" in found["salvaged"].message
    assert str(aside) in found["salvaged"].message
    assert "other devices" in found["salvaged"].advice
    assert aside.name in found["set aside"].message
    assert "-wal" not in found["set aside"].message


@pytest.mark.promise(number=9)
@pytest.mark.parametrize("digest", ["CAST(x'ff80' AS TEXT)", "7", "NULL", "x'00'", "''"])
async def test_an_operation_with_a_damaged_digest_is_not_sent_under_its_dot(
    tmp_path: Path, journal: Path, digest: str
) -> None:
    """Nothing proves that its other cells are intact. The server has an acknowledged operation, and
    the items of an operation that was never sent are written again. No replica loses an item."""
    with DevServer() as server:
        there = tmp_path / "there.db"
        async with CachedSession.from_url("s", url=server.url, journal=journal) as session:
            await session.add_items(text_message("acked", "too"))
            await session.add_items(text_message("in part", "popped"))
            await session.pop_item()
            await session.sync()
            async with CachedSession.from_url("s", url=server.url, journal=there) as other:
                await other.sync()
        async with CachedSession("s", journal=journal) as session:
            await session.add_items(text_message("unsent", "as well"))
            await session.add_items(text_message("partly", "taken back"))
            await session.pop_item()
        damage_digests(journal, digest)
        async with CachedSession("s", journal=journal) as session:
            assert await words(session) == EVERYTHING
            session._engine.journal._connections.suspicion = "the test suspects damage"
            assert await words(session) == ["unsent", "as well", "partly"]
            salvaged = str(session.status().salvaged)
            assert "; operations written again: 2; copied 2 operations to a new file" in salvaged
        async with CachedSession.from_url("s", url=server.url, journal=journal) as session:
            await session.sync()
            assert await words(session) == EVERYTHING
            assert (session.status().conflicts, session.status().pending) == (0, 0)
            assert (await session.audit()).healed == 0
        async with CachedSession.from_url("s", url=server.url, journal=there) as other:
            await other.sync()
            assert await words(other) == EVERYTHING
            assert other.status().conflicts == 0


EVERYTHING = ["acked", "too", "in part", "unsent", "as well", "partly"]


def damage_digests(path: Path, digest: str) -> None:
    """Give every digest the value of a damaged cell."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        (sql,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = 'ops'").fetchone()
        resume = "UPDATE sqlite_master SET sql = ? WHERE name = 'ops'"
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute(resume, (sql.replace("digest TEXT NOT NULL", "digest"),))
        conn.execute("PRAGMA writable_schema = RESET")
        spoil(conn, f"UPDATE ops SET digest = {digest}")
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute(resume, (sql,))
