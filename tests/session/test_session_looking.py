"""Entries, search and recall without a server."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession
from tests.journal_rows import change_payloads
from tests.session.session_support import contents, messages

CALL = {
    "type": "function_call",
    "call_id": "c",
    "name": "book_flight",
    "arguments": '{"to": "Rom"}',
}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "Flight HAT088"}
ANSWER = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Gebucht: STRASSE Größe"}],
}


async def test_entries_describe_each_item(place: str) -> None:
    """Ranks count from 0 without gaps, and each entry has its batch, writer, run and state."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items(messages("a", "b"))
        await session.add_items(messages("c"))
        entries = await session.entries()
        assert [entry.item for entry in entries] == await session.get_items()
        assert [entry.rank for entry in entries] == [0, 1, 2]
        assert [(entry.counter, entry.index) for entry in entries] == [(1, 0), (1, 1), (2, 0)]
        assert len({(entry.writer, entry.run, entry.stamp) for entry in entries}) == 1
        assert {entry.sync_state for entry in entries} == {"pending"}
        assert all(entry.said_at > 1.6e9 for entry in entries)


@pytest.mark.parametrize(
    ("limit", "ranks"), [(1, [2]), (2, [1, 2]), (9, [0, 1, 2]), (0, []), (-1, [])]
)
async def test_entries_take_a_limit(place: str, limit: int, ranks: list[int]) -> None:
    """The latest n entries keep the ranks that they have in the whole history."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items(messages("a", "b", "c"))
        assert [entry.rank for entry in await session.entries(limit)] == ranks


async def test_entries_follow_pops_and_clears(place: str) -> None:
    """Ranks have no gaps after a pop or clear."""
    async with CachedSession("s", journal=place) as session:
        assert await session.entries() == []
        await session.add_items(messages("a", "b"))
        await session.pop_item()
        await session.add_items(messages("c"))
        assert [(e.rank, e.item["content"]) for e in await session.entries()] == [
            (0, "a"),
            (1, "c"),
        ]
        await session.clear_session()
        assert await session.entries() == []


async def test_a_reopened_journal_has_a_new_writer(journal: Path) -> None:
    """Each opening is a writer of its own, so that a copied journal causes no conflict."""
    for word in "ab":
        async with CachedSession("s", journal=journal) as session:
            await session.add_items(messages(word))
    async with CachedSession("s", journal=journal) as session:
        first, second = await session.entries()
    assert first.writer != second.writer
    assert first.stamp < second.stamp


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("flight", [2, 1]),
        ("FLIGHT", [2, 1]),
        ("hat088 flight", [2]),
        ("rom", [1]),
        ("straße", [3]),
        ("größe", [3]),
        ("wohin", [0]),
        ("nothing", []),
        ("flight nothing", []),
    ],
)
async def test_search_finds_items_with_every_word(place: str, query: str, found: list[int]) -> None:
    """Messages, tool calls and outputs are found in any case, the latest first."""
    async with CachedSession("s", journal=place) as session:
        items: list[Any] = [*messages("Wohin geht's?"), CALL, OUTPUT, ANSWER]
        await session.add_items(items)
        entries = await session.search(query)
        assert [entry.rank for entry in entries] == found
        assert [entry.item for entry in entries] == [items[rank] for rank in found]


@pytest.mark.parametrize(
    ("limit", "found"), [(1, [4]), (2, [4, 3]), (99, [4, 3, 2, 1, 0]), (0, []), (-1, [])]
)
async def test_search_takes_a_limit(place: str, limit: int, found: list[int]) -> None:
    """The latest n matches are returned, and none for zero or less."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items(messages(*(f"word {n}" for n in range(5))))
        assert [entry.rank for entry in await session.search("word", limit)] == found


async def test_search_finds_only_visible_items_of_its_session(journal: Path) -> None:
    """Neither another session's items nor popped ones are found."""
    async with (
        CachedSession("s", journal=journal) as session,
        CachedSession("t", journal=journal) as other,
    ):
        await session.add_items(messages("word 1", "word 2"))
        await other.add_items(messages("word 3"))
        await session.pop_item()
        assert contents([entry.item for entry in await session.search("word")]) == ["word 1"]


async def test_recall_without_a_server_is_a_search(place: str) -> None:
    """The result says that it comes from a local search."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items(messages("word 1", "other", "word 2"))
        recall = await session.recall("word", limit=5)
        assert recall.source == "local"
        assert contents([entry.item for entry in recall.entries]) == ["word 2", "word 1"]


async def test_a_damaged_row_does_not_hide_other_entries(journal: Path) -> None:
    """Entries and search omit a row that cannot be decoded, and the limit does not count it."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(messages(*(f"word {n}" for n in range(4))))
        with sqlite3.connect(journal) as conn:
            assert change_payloads(conn, lambda at, text: b"damaged" if at == 2 else text) == 1
        conn.close()
        left = ["word 0", "word 1", "word 3"]
        assert contents([entry.item for entry in await session.entries()]) == left
        assert contents([entry.item for entry in await session.entries(2)]) == left[-2:]
        assert contents([entry.item for entry in await session.search("word")]) == left[::-1]


async def test_nothing_is_parked_without_a_server(place: str) -> None:
    """Only a server can refuse an operation."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items(messages("a"))
        assert await session.parked() == []
        assert await session.retry_parked() == 0
        assert await session.drop_parked(("nobody", 1)) == 0
