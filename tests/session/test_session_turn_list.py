"""`CachedSession.turns`: the latest turns, whole and oldest first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession, InvalidArgument


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[CachedSession]:
    async with CachedSession("talk", journal=tmp_path / "a.db") as opened:
        yield opened


def message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def call(identity: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": identity, "name": "look", "arguments": "{}"}


def output(identity: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": identity, "output": "found"}


async def add_turn(session: CachedSession, number: int) -> list[dict[str, Any]]:
    """Add a turn of four items in three batches."""
    batches = [
        [message("user", f"question {number}")],
        [call(f"c{number}"), output(f"c{number}")],
        [message("assistant", f"answer {number}")],
    ]
    for batch in batches:
        await session.add_items(batch)
    return [item for batch in batches for item in batch]


async def test_a_turn_has_the_items_of_all_its_batches(session: CachedSession) -> None:
    """The head is the question, and the ids are those of the entries."""
    expected = [await add_turn(session, number) for number in range(3)]
    turns = await session.turns()
    assert [turn.items for turn in turns] == expected
    assert [turn.head.item for turn in turns] == [items[0] for items in expected]
    entries = await session.entries()
    assert [entry for turn in turns for entry in turn.entries] == entries
    assert [{entry.turn for entry in turn.entries} for turn in turns] == [
        {turn.id} for turn in turns
    ]
    assert len({turn.id for turn in turns}) == 3
    assert [turn.said_at for turn in turns] == [entry.said_at for entry in entries[::4]]


@pytest.mark.parametrize(("limit", "kept"), [(1, 1), (2, 2), (9, 3), (0, 0), (-1, 0), (None, 3)])
async def test_a_limit_counts_turns(session: CachedSession, limit: int | None, kept: int) -> None:
    """The latest turns are returned, each whole."""
    expected = [await add_turn(session, number) for number in range(3)]
    assert [turn.items for turn in await session.turns(limit)] == expected[3 - kept :]


async def test_an_output_that_comes_late_is_in_the_turn_of_its_call(
    session: CachedSession,
) -> None:
    """Its rank is below those of a later turn, and ranks have no gaps."""
    await session.add_items([message("user", "pay")])
    await session.add_items([call("c1")])
    other = await add_turn(session, 2)
    await session.add_items([output("c1")])
    first, second = await session.turns()
    assert first.items == [message("user", "pay"), call("c1"), output("c1")]
    assert second.items == other
    assert [entry.rank for entry in await session.entries()] == list(range(7))
    assert await session.get_items() == first.items + second.items


async def test_a_removed_turn_is_not_listed(session: CachedSession) -> None:
    """A turn without visible entries does not exist for a reader."""
    kept = await add_turn(session, 1)
    for _ in await add_turn(session, 2):
        await session.pop_item()
    assert [turn.items for turn in await session.turns()] == [kept]
    await session.clear_session()
    assert await session.turns() == []


async def test_a_limit_that_is_no_number_is_refused(session: CachedSession) -> None:
    """As for `get_items`."""
    with pytest.raises(InvalidArgument):
        await session.turns("two")  # type: ignore[arg-type]
