"""Damage inside the full-text index, in a file that `quick_check` finds sound."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest

from cached_session import CachedSession, JournalCorrupt, SessionCache, diagnose
from cached_session.journal.tables import search_index

NOTICED = {
    "garbage for leaves": "UPDATE words_data SET block = x'ffffffffff' WHERE id > 10",
    "garbage for the structure": "UPDATE words_data SET block = x'ffffffffffffffff' WHERE id = 10",
    "no leaves": "DELETE FROM words_data WHERE id > 10",
    "nothing at all": "DELETE FROM words_data",
    "an unknown version": "UPDATE words_config SET v = 99",
    "no version": "DELETE FROM words_config",
    "no table of data": "DROP TABLE words_data",
    "no table of terms": "DROP TABLE words_idx",
    "no table of settings": "DROP TABLE words_config",
}
ZEROS = "UPDATE words_data SET block = zeroblob(length(block)) WHERE id > 10"
"""Delete entries from the index. It stays well-formed, so that a search cannot detect the loss."""
WORDS = [f"needle {number}" for number in range(150)]


def text_message(*words: str) -> list[Any]:
    return [{"role": "user", "content": word} for word in words]


async def journal_with_damaged_index(path: Path, sql: str) -> None:
    """Return a closed journal whose full-text index was damaged by a statement."""
    async with CachedSession("s", journal=path) as session:
        for word in WORDS:
            await session.add_items(text_message(word))
    with closing(sqlite3.connect(path)) as conn:
        search_index.slice_up(conn)
        conn.commit()
        conn.execute(sql)
        conn.commit()
        assert conn.execute("PRAGMA quick_check").fetchone() == ("ok",)


async def found(session: CachedSession, word: str) -> list[str]:
    return [str(entry.item["content"]) for entry in await session.search(word, 1000)]


def is_sound(path: Path) -> bool:
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        assert search_index.is_kept(conn)
        return search_index.is_sound(conn)


@pytest.mark.parametrize("sql", NOTICED.values(), ids=NOTICED)
async def test_a_search_over_a_damaged_index_finds_everything(tmp_path: Path, sql: str) -> None:
    """The first search drops the index and scans the items. The next opening builds a new index."""
    journal = tmp_path / "j.db"
    await journal_with_damaged_index(journal, sql)
    async with CachedSession("s", journal=journal) as session:
        assert await found(session, "needle") == WORDS[::-1]
        await session.add_items(text_message("needle after"))
    async with CachedSession("s", journal=journal) as session:
        assert await found(session, "needle") == ["needle after", *WORDS[::-1]]
    assert is_sound(journal)
    assert not list(tmp_path.glob("*damaged*"))


@pytest.mark.parametrize("sql", NOTICED.values(), ids=NOTICED)
async def test_writes_work_over_a_damaged_index(tmp_path: Path, sql: str) -> None:
    """Each write, index update and removal works, and nothing is lost."""
    journal = tmp_path / "j.db"
    await journal_with_damaged_index(journal, sql)
    more = [f"more {number}" for number in range(2 * search_index.BEHIND)]
    async with CachedSession("s", journal=journal) as session:
        for word in more:
            await session.add_items(text_message(word))
        await session.pop_item()
        assert await found(session, "more") == more[-2::-1]
        await session.clear_session()
        assert await found(session, "needle") == []


@pytest.mark.parametrize("sql", NOTICED.values(), ids=NOTICED)
async def test_index_damage_reported_by_another_statement_drops_the_index(
    tmp_path: Path, sql: str
) -> None:
    """Removing many operations makes SQLite flush the index when an unrelated statement begins a
    savepoint, and report the damage there. The call works, the journal file stays in place, and the
    next opening rebuilds the index."""
    journal = tmp_path / "j.db"
    await journal_with_damaged_index(journal, sql)
    async with CachedSession("s", journal=journal) as session:
        await session.clear_session()
        assert await session.get_items() == []
        await session.add_items(text_message("needle after"))
        assert await found(session, "needle") == ["needle after"]
    async with CachedSession("s", journal=journal) as session:
        assert await found(session, "needle") == ["needle after"]
        assert session.status().salvaged is None
    assert is_sound(journal)
    assert not list(tmp_path.glob("*damaged*"))


async def test_damage_outside_the_index_is_reported_once(
    tmp_path: Path,
) -> None:
    """A transaction that fails without the index as well has detected damage of the journal itself.
    It raises and stores nothing, and the next call works on a recovered file with all items and a
    new index."""
    journal = tmp_path / "j.db"
    await journal_with_damaged_index(journal, "UPDATE words_data SET block = x'ff' WHERE id > 10")
    with closing(sqlite3.connect(journal)) as conn:
        (root,) = conn.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'forgets'"
        ).fetchone()
    with journal.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)
    async with CachedSession("s", journal=journal) as session:
        with pytest.raises(JournalCorrupt) as caught:
            await session.clear_session()
        assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
        assert await found(session, "needle") == WORDS[::-1]
        assert "150 of them unsent; 1 loss: rows of table forgets;" in str(
            session.status().salvaged
        )
        await session.clear_session()
        assert await session.get_items() == []
    assert is_sound(journal)


@pytest.mark.parametrize("sql", [*NOTICED.values(), ZEROS], ids=[*NOTICED, "zeros"])
async def test_doctor_reports_a_damaged_index_and_compact_rebuilds_it(
    tmp_path: Path, sql: str
) -> None:
    """This includes a well-formed index from which entries are missing."""
    journal = tmp_path / "j.db"
    await journal_with_damaged_index(journal, sql)
    assert not is_sound(journal)
    (finding,) = [one for one in await diagnose(journal) if one.check == "search"]
    assert finding.level == "warn"
    assert "compact" in finding.advice
    async with SessionCache(journal) as cache:
        await cache.compact()
        async with cache.session("s") as session:
            assert await found(session, "needle") == WORDS[::-1]
    assert is_sound(journal)
    (finding,) = [one for one in await diagnose(journal) if one.check == "search"]
    assert finding.level == "ok"


async def test_a_sound_index_is_reported_as_sound_after_removals(tmp_path: Path) -> None:
    """Pops, clears and partly removed batches do not count as damage."""
    journal = tmp_path / "j.db"
    async with CachedSession("s", journal=journal) as session:
        for word in WORDS:
            await session.add_items(text_message(word, "and more"))
            if word.endswith("7"):
                await session.pop_item()
            if word.endswith("9"):
                await session.pop_item()
                await session.pop_item()
        async with CachedSession("t", journal=journal) as other:
            for word in WORDS:
                await other.add_items(text_message(word))
            await other.clear_session()
            await other.add_items(text_message("needle"))
    assert is_sound(journal)


@pytest.mark.parametrize("content", ["none", "text"])
async def test_recall_over_a_damaged_index_finds_everything(
    tmp_path: Path, content: Literal["none", "text"]
) -> None:
    """Recall scans the items when the server is not asked or does not answer."""
    journal = tmp_path / "j.db"
    await journal_with_damaged_index(journal, NOTICED["nothing at all"])
    async with CachedSession.from_url(
        "s", url="http://127.0.0.1:9", journal=journal, content=content
    ) as session:
        recall = await session.recall("needle 7", 1000)
        assert recall.source == "local"
        wanted = [word for word in WORDS[::-1] if "7" in word]
        assert [entry.item["content"] for entry in recall.entries] == wanted


async def test_doctor_reports_a_sqlite_without_full_text_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without FTS5 a search scans the session and finds the same items, and doctor reports why it
    is slower."""
    monkeypatch.setattr(search_index, "is_available", lambda _: False)
    journal = tmp_path / "j.db"
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a needle", "hay"))
        assert await found(session, "needle") == ["a needle"]
    (finding,) = [one for one in await diagnose(journal) if one.check == "search"]
    assert finding.level == "warn"
    assert "no full-text index" in finding.message
    assert "FTS5" in finding.advice
