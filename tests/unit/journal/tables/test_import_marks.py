"""Import marks: what an import has appended, and the turn that its batches join."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import schema
from cached_session.journal.tables.entry_rows import entries
from cached_session.journal.tables.import_marks import (
    NOTHING,
    Mark,
    append_marked,
    chained,
    mark_at,
    mark_key,
)
from cached_session.journal.tables.writes import Author, append

IMPORTER, OTHER = Author("importerwriter", 1000, 600_000), Author("otherwriter22", 2000, 600_000)
KEY = mark_key("talk", "jsonl", "{}")
CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "found"}


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        schema.prepare(opened, ":memory:", search_index=False)
        yield opened


def imported(conn: sqlite3.Connection, items: list[Any], before: Mark) -> Mark:
    chain = before.chain
    for item in items:
        chain = chained(chain, json.dumps(item))
    after = Mark(before.count + len(items), chain)
    written = append_marked(
        conn,
        IMPORTER,
        "talk",
        encode_items(items),
        private=False,
        key=KEY,
        before=before,
        after=after,
    )
    assert written is not None
    return after


def test_the_mark_moves_with_the_batch(conn: sqlite3.Connection) -> None:
    """Another import that read the mark before writes nothing."""
    after = imported(conn, [{"role": "user", "content": "hello"}], NOTHING)
    assert mark_at(conn, KEY) == after
    encoded = encode_items([{"role": "user", "content": "hello"}])
    again = append_marked(
        conn, IMPORTER, "talk", encoded, private=False, key=KEY, before=NOTHING, after=after
    )
    assert again is None
    assert len(entries(conn, "talk", None)) == 1


def test_a_batch_that_begins_with_an_output_joins_the_turn_of_the_call(
    conn: sqlite3.Connection,
) -> None:
    """Another writer may append between two batches of an import."""
    mark = imported(conn, [{"role": "user", "content": "look"}, CALL], NOTHING)
    append(conn, OTHER, "talk", encode_items([{"role": "user", "content": "hi"}]), private=False)
    imported(conn, [OUTPUT, {"role": "assistant", "content": "done"}], mark)
    found = entries(conn, "talk", None)
    kinds = [entry.item.get("type") or entry.item["content"] for entry in found]
    assert kinds == ["look", "function_call", "function_call_output", "done", "hi"]
    assert len({entry.turn for entry in found}) == 2
