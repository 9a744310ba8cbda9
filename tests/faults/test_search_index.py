"""A full-text index that is damaged inside, where `quick_check` calls the file whole."""

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
"""An index that looks whole and knows fewer words: a search has no way to tell."""
WORDS = [f"needle {number}" for number in range(150)]


def said(*words: str) -> list[Any]:
    return [{"role": "user", "content": word} for word in words]


async def spoiled(path: Path, sql: str) -> None:
    """A journal whose index has been damaged by a statement, while nobody had it open."""
    async with CachedSession("s", journal=path) as session:
        for word in WORDS:
            await session.add_items(said(word))
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
async def test_a_search_that_meets_damage_finds_all_the_same(tmp_path: Path, sql: str) -> None:
    """The first search gives the index up and looks through the items; the next opening builds a
    new one."""
    journal = tmp_path / "j.db"
    await spoiled(journal, sql)
    async with CachedSession("s", journal=journal) as session:
        assert await found(session, "needle") == WORDS[::-1]
        await session.add_items(said("needle after"))
    async with CachedSession("s", journal=journal) as session:
        assert await found(session, "needle") == ["needle after", *WORDS[::-1]]
    assert is_sound(journal)
    assert not list(tmp_path.glob("*damaged*"))


@pytest.mark.parametrize("sql", NOTICED.values(), ids=NOTICED)
async def test_writes_are_not_held_up_by_a_damaged_index(tmp_path: Path, sql: str) -> None:
    """However many are written, indexed or removed: each call works, and nothing is lost."""
    journal = tmp_path / "j.db"
    await spoiled(journal, sql)
    more = [f"more {number}" for number in range(2 * search_index.BEHIND)]
    async with CachedSession("s", journal=journal) as session:
        for word in more:
            await session.add_items(said(word))
        await session.pop_item()
        assert await found(session, "more") == more[-2::-1]
        await session.clear_session()
        assert await found(session, "needle") == []


@pytest.mark.parametrize("sql", NOTICED.values(), ids=NOTICED)
async def test_damage_that_another_statement_meets_is_the_index_s(tmp_path: Path, sql: str) -> None:
    """The first call takes many operations out of the index: SQLite writes that to it when a
    statement about something else begins a savepoint, and says there that the file is damaged. The
    call works all the same, the journal stays where it is, and the next opening indexes anew."""
    journal = tmp_path / "j.db"
    await spoiled(journal, sql)
    async with CachedSession("s", journal=journal) as session:
        await session.clear_session()
        assert await session.get_items() == []
        await session.add_items(said("needle after"))
        assert await found(session, "needle") == ["needle after"]
    async with CachedSession("s", journal=journal) as session:
        assert await found(session, "needle") == ["needle after"]
        assert session.status().salvaged is None
    assert is_sound(journal)
    assert not list(tmp_path.glob("*damaged*"))


async def test_damage_of_the_journal_itself_is_told_once_whatever_becomes_of_the_index(
    tmp_path: Path,
) -> None:
    """A transaction that fails without the index, too, has met damage of the journal: its caller is
    told of that, nothing of it is stored, and the next call works over a mended file that has all
    words, and an index again."""
    journal = tmp_path / "j.db"
    await spoiled(journal, "UPDATE words_data SET block = x'ff' WHERE id > 10")
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
async def test_doctor_sees_a_damaged_index_and_compact_mends_it(tmp_path: Path, sql: str) -> None:
    """Also one that looks like an index that knows fewer words."""
    journal = tmp_path / "j.db"
    await spoiled(journal, sql)
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


async def test_a_sound_index_is_called_sound_whatever_has_been_removed(tmp_path: Path) -> None:
    """Pops, clears and batches that went in part are no damage."""
    journal = tmp_path / "j.db"
    async with CachedSession("s", journal=journal) as session:
        for word in WORDS:
            await session.add_items(said(word, "and more"))
            if word.endswith("7"):
                await session.pop_item()
            if word.endswith("9"):
                await session.pop_item()
                await session.pop_item()
        async with CachedSession("t", journal=journal) as other:
            for word in WORDS:
                await other.add_items(said(word))
            await other.clear_session()
            await other.add_items(said("needle"))
    assert is_sound(journal)


@pytest.mark.parametrize("content", ["none", "text"])
async def test_recall_meets_damage_as_a_search_does(
    tmp_path: Path, content: Literal["none", "text"]
) -> None:
    """Where the server is not asked or does not answer, the items are looked through."""
    journal = tmp_path / "j.db"
    await spoiled(journal, NOTICED["nothing at all"])
    async with CachedSession.from_url(
        "s", url="http://127.0.0.1:9", journal=journal, content=content
    ) as session:
        recall = await session.recall("needle 7", 1000)
        assert recall.source == "local"
        wanted = [word for word in WORDS[::-1] if "7" in word]
        assert [entry.item["content"] for entry in recall.entries] == wanted


async def test_doctor_says_that_this_sqlite_keeps_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without FTS5 a search looks through the session: it finds the same, and doctor says why it
    takes longer."""
    monkeypatch.setattr(search_index, "is_available", lambda _: False)
    journal = tmp_path / "j.db"
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said("a needle", "hay"))
        assert await found(session, "needle") == ["a needle"]
    (finding,) = [one for one in await diagnose(journal) if one.check == "search"]
    assert finding.level == "warn"
    assert "no full-text index" in finding.message
    assert "FTS5" in finding.advice
