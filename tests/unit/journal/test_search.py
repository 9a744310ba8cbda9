"""The full-text index: it gives the same results as a scan, and follows the items."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.history.ids import session_key
from cached_session.history.ops import Dot, ItemRef, Kind, Operation
from cached_session.history.parts import Part
from cached_session.history.session_ref import SessionRef
from cached_session.journal import idle_work, search, writer
from cached_session.journal.journal import Journal
from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import inbox, schema, search_index, writes
from cached_session.journal.tables.writes import Author
from cached_session.remote.wire import decode, memories_of
from tests.golden.test_golden_journals import FORMATS, write_journal
from tests.hypothesis_profiles import examples

AUTHOR = Author("a" * 24, 1_700_000_000_000, 600_000)
SCRIPTS = {
    "english": ("I need to cancel the reservation ZFA04Y", ["cancel", "zfa04y", "to", "a"]),
    "chinese": ("请取消明天上午的会议, 谢谢", ["会议", "取消", "会", "取消明天", "上午 谢谢"]),
    "japanese": ("明日の会議をキャンセルしてください", ["会議", "キャンセル", "ｷｬﾝｾﾙ", "明"]),
    "korean": ("내일 회의를 취소해 주세요", ["회의", "취소", "일", "내일"]),
    "thai": ("กรุณายกเลิกการประชุม", ["ประชุม", "การ", "ก"]),
    "arabic": ("يرجى إلغاء الاجتماع غدا", ["الاجتماع", "غدا", "إل"]),
    "emoji": ("great 🎉👩‍👩‍👧 job 👍🏽", ["🎉", "👩‍👩‍👧", "👍🏽", "👍"]),
    "diacritics": ("Crème brûlée, Ångström", ["crème", "BRÛLÉE", "cre\u0300me", "å", "ång"]),
    "width": ("ＦＵＬＬ ｗｉｄｔｈ, straße", ["full", "WIDTH", "STRASSE"]),
    "signs": ('say "yes" OR NOT (a*b) ^x:y', ['"yes"', "or", "not", "(a*b)", "^x:y", '"']),
}


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    """Return the connection of a journal in memory, without threads."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        schema.prepare(conn, ":memory:")
        yield conn


def add(conn: sqlite3.Connection, session: str, *texts: str) -> None:
    batch = encode_items([{"role": "user", "content": text} for text in texts])
    writes.append(conn, AUTHOR, session, batch, private=False)


def found(conn: sqlite3.Connection, session: str, query: str) -> list[Any]:
    return search.find(conn, session, search.words(query), 1000)


def scanned(conn: sqlite3.Connection, session: str, query: str) -> list[Any]:
    return search.scan(conn, session, search.words(query), 1000)


def indexed(conn: sqlite3.Connection) -> int:
    """Return how many operations the index has for a word that all of them contain, once none
    waits."""
    search_index.catch_up(conn, search_index.reach(conn) or 0)
    rows = conn.execute("SELECT rowid FROM words WHERE words MATCH '\"wor\"'").fetchall()
    return len(rows)


@pytest.mark.parametrize("indexed_now", [False, True], ids=["waiting", "indexed"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_is_found(conn: sqlite3.Connection, script: str, indexed_now: bool) -> None:
    """A word of any script and length is found in the one item that contains it."""
    for text, _ in SCRIPTS.values():
        add(conn, "talk", text)
    if indexed_now:
        search_index.catch_up(conn, 0)
    text, queries = SCRIPTS[script]
    for query in queries:
        hits = found(conn, "talk", query)
        assert text in [entry.item["content"] for entry in hits], query
        assert hits == scanned(conn, "talk", query)


@pytest.mark.parametrize("query", ["谢", "会议", "🎉", "cancel", "to cancel"])
def test_words_of_the_index_need_no_scan(
    conn: sqlite3.Connection, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single ideograph or emoji, a pair, and three letters are looked up."""
    for text, _ in SCRIPTS.values():
        add(conn, "talk", text)
    search_index.catch_up(conn, 0)
    monkeypatch.setattr(search, "scan", None)
    assert len(found(conn, "talk", query)) == 1


LETTERS = st.text("ab \"'*é会议\U0001f389\x1f\ue000\n", min_size=1, max_size=8)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("index"), st.just("x"), st.none()),
        st.tuples(st.just("add"), st.sampled_from("xy"), st.lists(LETTERS, min_size=1, max_size=3)),
        st.tuples(st.just("pop"), st.sampled_from("xy"), st.integers(0, 20)),
        st.tuples(st.just("clear"), st.sampled_from("xy"), st.none()),
        st.tuples(st.just("any"), st.sampled_from("xy"), st.text(min_size=1, max_size=6)),
    ),
    max_size=12,
)


@examples(100)
@given(STEPS, st.lists(st.text('ab"é会议\U0001f389 ', min_size=1, max_size=5), max_size=5))
def test_the_index_finds_what_a_scan_finds(steps: list[Any], queries: list[str]) -> None:
    """After any appends, pops and clears in two sessions, look-up and scan give the same entries,
    and a rebuilt index equals the maintained one."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        schema.prepare(conn, ":memory:")
        conn.create_function("part_count", 1, lambda _: 1)
        asked = list(queries)
        for kind, session, what in steps:
            if kind == "add":
                add(conn, session, *what)
            elif kind == "any":
                add(conn, session, what)
                asked.append(what)
            elif kind == "index":
                search_index.catch_up(conn, search_index.reach(conn) or 0)
            elif kind == "clear":
                writes.clear(conn, AUTHOR, session)
            else:
                entries = search.scan(conn, session, [""], 100)
                if entries:
                    entry = entries[what % len(entries)]
                    ref = ItemRef(Dot(entry.writer, entry.counter), entry.index, 99)
                    writes.pop_ref(conn, AUTHOR, session, ref)
        assert search_index.is_kept(conn)
        for query in asked:
            if not query.split():
                continue
            for session in "xy":
                assert found(conn, session, query) == scanned(conn, session, query)
        search_index.catch_up(conn, search_index.reach(conn) or 0)
        kept = _all_candidates(conn)
        search_index.switch(conn, False)
        search_index.switch(conn, True)
        search_index.catch_up(conn, 0)
        assert _all_candidates(conn) == kept


def _all_candidates(conn: sqlite3.Connection) -> dict[str, list[Any]]:
    conn.execute("CREATE VIRTUAL TABLE temp.v USING fts5vocab(main, words, instance)")
    rows = conn.execute("SELECT term, doc FROM temp.v").fetchall()
    conn.execute("DROP TABLE temp.v")
    held: dict[str, list[Any]] = {}
    for term, doc in rows:
        held.setdefault(term, []).append(doc)
    return {term: sorted(set(docs)) for term, docs in held.items()}


def test_removed_items_leave_the_index(conn: sqlite3.Connection) -> None:
    """No trigram of a popped or cleared item remains."""
    conn.create_function("part_count", 1, lambda _: 1)
    add(conn, "talk", "word one", "word two secret")
    search_index.catch_up(conn, 0)
    assert "sec" in _all_candidates(conn)
    writes.pop(conn, AUTHOR, "talk")
    assert "sec" not in _all_candidates(conn)
    assert "one" in _all_candidates(conn)
    writes.clear(conn, AUTHOR, "talk")
    assert _all_candidates(conn) == {}


@pytest.mark.parametrize("version", FORMATS)
def test_an_old_file_gets_its_index(tmp_path: Path, version: int) -> None:
    """A journal of an older format is migrated when it is opened, and its items are found without a
    scan, together with later ones."""
    path = write_journal(tmp_path / "old.db", version)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        schema.prepare(conn, str(path))
        assert search_index.is_kept(conn)
        before = scanned(conn, "talk", "the")
        assert len(before) == 5
        assert found(conn, "talk", "the") == before
        add(conn, "talk", "the new item")
        search_index.catch_up(conn, search_index.reach(conn) or 0)
        assert len(found(conn, "talk", "the")) == 6
        assert search_index.is_sound(conn)


def test_a_file_without_an_index_is_scanned(tmp_path: Path) -> None:
    """With the index off, the file has none and search scans; turned on again, the index has every
    item, also those written meanwhile."""
    path = tmp_path / "journal.db"
    for on, text in ((True, "word one"), (False, "word two"), (True, "word three")):
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            schema.prepare(conn, str(path), search_index=on)
            add(conn, "talk", text)
            assert search_index.is_kept(conn) is on
            names = conn.execute("SELECT name FROM sqlite_master WHERE name LIKE 'words%'")
            assert bool(names.fetchall()) is on
            assert found(conn, "talk", text)[0].item["content"] == text
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        assert indexed(conn) == 3


def test_a_sqlite_without_fts5_marks_the_index_as_outdated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes the file without the index, and the next SQLite that has the module rebuilds it."""
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        schema.prepare(conn, str(path))
        add(conn, "talk", "word one")
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        monkeypatch.setattr(search_index, "is_available", lambda _: False)
        schema.prepare(conn, str(path))
        add(conn, "talk", "word two")
        assert not search_index.is_kept(conn)
        assert len(found(conn, "talk", "word")) == 2
        monkeypatch.undo()
        schema.prepare(conn, str(path))
        assert indexed(conn) == 2


def test_a_damaged_index_does_not_prevent_a_write(
    conn: sqlite3.Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The item is stored, the index is dropped with a log message, and search scans the session."""
    add(conn, "talk", "word one")
    search_index.catch_up(conn, 0)
    conn.execute("UPDATE words_data SET block = x'ffffffff'")
    monkeypatch.setattr(search_index, "BEHIND", 0)
    add(conn, "talk", "word two")
    search_index.slice_up(conn)
    assert not search_index.is_kept(conn)
    assert "the search index failed" in caplog.text
    assert [entry.item["content"] for entry in found(conn, "talk", "word")] == [
        "word two",
        "word one",
    ]


@pytest.mark.parametrize("query", ["a\x00bc", "abc\ud800", "\x00"])
def test_a_query_that_no_text_can_contain_finds_nothing(
    conn: sqlite3.Connection, query: str
) -> None:
    """NUL and lone surrogates are in no readable text, so the index is not queried for them."""
    add(conn, "talk", query, "abc")
    assert found(conn, "talk", query) == []


def test_a_busy_thread_still_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write does not wait for the index, and the number of unindexed items is limited."""
    monkeypatch.setattr(writer, "IDLE", 3600)
    monkeypatch.setattr(idle_work, "UNINDEXED_MOST", 2 * search_index.SLICE)
    journal = Journal(tmp_path / "journal.db", durability="normal")
    journal.open_blocking()
    try:
        most = 0
        for number in range(3 * idle_work.UNINDEXED_MOST):
            journal.write_blocking(lambda conn, word=f"word {number}": add(conn, "talk", word))  # type: ignore[misc]
            reached = journal.read_blocking(search_index.reach) or 0
            most = max(most, number + 1 - reached)
        assert search_index.SLICE < most <= idle_work.UNINDEXED_MOST + search_index.BEHIND
        assert reached >= 2 * idle_work.UNINDEXED_MOST - search_index.BEHIND
    finally:
        journal.close_blocking()


def hydrate(conn: sqlite3.Connection, first: int, most: int) -> None:
    """Apply a page of another device's operations, as a pull does."""
    key, parts = session_key("talk"), []
    for counter in range(first, first + most):
        payload = json.dumps({"role": "user", "content": f"word {counter}"})
        op = Operation(Dot("b" * 24, counter), Kind.APPEND, counter << 16, counter, (payload,))
        found = [decode(memory, key) for memory in memories_of(op, op.digest(key), "talk")]
        parts += [part for part in found if isinstance(part, Part)]
    assert inbox.apply_page(conn, SessionRef.of("talk"), parts, [], counter).new == most


def test_pages_and_writes_do_not_index(conn: sqlite3.Connection) -> None:
    """They leave it to the idle writing thread, and search finds everything meanwhile."""
    hydrate(conn, 1, 1000)
    add(conn, "talk", "word own")
    assert search_index.reach(conn) == 0
    assert len(found(conn, "talk", "word")) == 1000
    assert found(conn, "talk", "word") == scanned(conn, "talk", "word")


def test_large_operations_make_a_slice_short(conn: sqlite3.Connection) -> None:
    """A slice ends early after large payloads, and includes at least one operation."""
    for number in range(search_index.BEHIND):
        add(conn, "talk", f"word {number} " + "x" * search_index.SLICE_BYTES)
    hydrate(conn, 1, 1)
    for step in (1, 2):
        search_index.slice_up(conn)
        assert search_index.reach(conn) == min(step, 1)


def test_the_index_catches_up_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After hydration the idle journal indexes in slices of limited size, until only a few
    operations wait."""
    monkeypatch.setattr(writer, "IDLE", 0.001)
    reached, done = [0], threading.Event()
    is_behind = search_index.is_behind

    def watched(conn: sqlite3.Connection) -> bool:
        behind = is_behind(conn)
        reached.append(search_index.reach(conn) or 0)
        if not behind and reached[-1]:
            done.set()
        return behind

    monkeypatch.setattr(search_index, "is_behind", watched)
    journal = Journal(tmp_path / "journal.db")
    journal.open_blocking()
    try:
        journal.write_blocking(lambda conn: hydrate(conn, 1, 1500))
        assert done.wait(120)
        steps = [after - before for before, after in pairwise(reached)]
        assert max(steps) == search_index.SLICE
        assert 1500 - search_index.BEHIND <= reached[-1] <= 1500
        entries = journal.read_blocking(lambda conn: found(conn, "talk", "word"))
        assert len(entries) == 1000
    finally:
        journal.close_blocking()


async def test_an_idle_slice_does_not_wait_for_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While another program holds the lock, the writing thread stays free, and the index is updated
    later."""
    locked, tried, sliced = threading.Event(), threading.Event(), threading.Event()
    slice_up = search_index.slice_up

    def is_behind(conn: sqlite3.Connection) -> bool:
        # A look before the lock is taken would find it free.
        assert locked.wait(120)
        tried.set()
        return not sliced.is_set()

    def slice_and_tell(conn: sqlite3.Connection) -> None:
        slice_up(conn)
        sliced.set()

    monkeypatch.setattr(writer, "IDLE", 0.001)
    monkeypatch.setattr(search_index, "is_behind", is_behind)
    monkeypatch.setattr(search_index, "slice_up", slice_and_tell)
    journal = Journal(tmp_path / "j.db", busy_timeout=3600)
    await journal.open()
    with closing(sqlite3.connect(tmp_path / "j.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        locked.set()
        assert await asyncio.to_thread(tried.wait, 120)
        assert not sliced.is_set()
        free = asyncio.ensure_future(
            journal.maintain(lambda conn: conn.execute("PRAGMA busy_timeout").fetchone())
        )
        done, _ = await asyncio.wait([free], timeout=60)
        other.execute("ROLLBACK")
    assert done
    assert await free == (3600 * 1000,)
    assert await asyncio.to_thread(sliced.wait, 120)
    await journal.close()
    assert caplog.records == []
