"""Decoding what the server returns, and applying it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cached_session.history.ops import Dot, Kind, Operation
from cached_session.remote.wire import memories_of, placeholder
from cached_session.replication.ingest import apply_page, read_page, stored_second
from cached_session.replication.results import PullResult
from tests.unit.replication.fakes import SESSION, FakeServer, context_of

THEM = "t" * 24


def memories(counter: int, *payloads: str) -> list[dict[str, Any]]:
    """Return the memories of an operation of another device, stored in second 100 + counter."""
    op = Operation(Dot(THEM, counter), Kind.APPEND, counter, 1, payloads)
    made = memories_of(op, op.digest(SESSION.key), SESSION.session_id)
    return [{**memory, "created_at": 100 + counter} for memory in made]


@pytest.mark.parametrize(
    ("created", "second"),
    [
        (7, 7),
        (7.9, 7),
        (0, 0),
        (-1, None),
        (math.nan, None),
        (math.inf, None),
        (1 << 40, None),
        ("7", None),
        (None, None),
    ],
)
def test_only_a_time_is_taken_for_one(created: object, second: int | None) -> None:
    """A server may report anything."""
    assert stored_second({"created_at": created}) == second
    assert stored_second({}) is None


async def test_a_page_is_decoded_in_order() -> None:
    """Parts, placeholders and unreadable memories are kept apart; foreign ones leave their id."""
    broken = {**memories(9, '"x"')[0]}
    broken["metadata"] = {**broken["metadata"], "cs_n": "many"}
    op = Operation(Dot(THEM, 3), Kind.APPEND, 3, 1, ('"c"',))
    listed = [
        *memories(2, '"b"'),
        placeholder(op, SESSION.session_id),
        {"id": "foreign"},
        broken,
        *memories(1, '"a"'),
    ]
    page = await read_page(listed, SESSION.key)
    assert [part.dot.counter for part in page.parts] == [2, 1]
    assert page.explained == [op.dot]
    assert page.unreadable == 1
    assert len(page.ids) == 5
    assert (page.newest, page.oldest) == (109, 101)
    assert page.is_ours


async def test_a_page_of_foreign_memories_is_not_ours() -> None:
    """Nothing of it is applied."""
    page = await read_page([{"id": "foreign"}, {}], SESSION.key)
    assert not page.is_ours
    assert (page.newest, page.oldest) == (0, 0)
    context, result = context_of(FakeServer()), PullResult()
    assert (await apply_page(context, SESSION, page, result)).is_known
    assert result == PullResult()


async def test_a_page_is_applied_and_counted() -> None:
    """The result of a pull counts over all its pages."""
    context, result = context_of(FakeServer()), PullResult()
    page = await read_page([*memories(1, '"a"'), *memories(2, '"b"')], SESSION.key)
    assert (await apply_page(context, SESSION, page, result)).new == 2
    assert (await apply_page(context, SESSION, page, result)).is_known
    assert (result.new, result.unreadable) == (2, 0)
    await context.journal.close()


async def test_a_damaged_operation_counts_as_unreadable() -> None:
    """Its parts do not match their seal."""
    context, result = context_of(FakeServer()), PullResult()
    (memory,) = memories(1, '"a"')
    memory["metadata"] = {**memory["metadata"], "cs_x": '"b"'}
    page = await read_page([memory], SESSION.key)
    await apply_page(context, SESSION, page, result)
    assert (result.new, result.unreadable) == (0, 1)
    await context.journal.close()
