from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from cached_session import CachedSession
from cached_session.journal import get_items, tail_cache
from cached_session.journal.journal import Journal
from cached_session.journal.tables import writes
from cached_session.journal.tables.writes import Author
from tests.hypothesis_profiles import examples
from tests.journal_rows import items_of

Steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["append"] * 4
            + ["pop", "pop", "clear", "other session", "other append", "other pop", "other clear"]
        ),
        st.integers(1, 9),
        st.sampled_from([None, 1, 2, 3, 5, 8, 13, 21, 100]),
    ),
    max_size=30,
)


def scan(path: Path) -> list[Any]:
    """Return the history as stored in the file."""
    with closing(sqlite3.connect(path)) as conn:
        return [json.loads(text) for *_, text in items_of(conn, "s")]


@examples(30)
@given(Steps)
def test_the_tail_cache_agrees_with_the_file(steps: list[Any]) -> None:
    """A read gives the result of a scan of the file, as new objects, for any requested part and
    after writes through this journal or another connection."""
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.multiple(
            get_items, SHORT_ITEMS=6, SHORT_BYTES=90, SLICE_ITEMS=4, SLICE_BYTES=60
        ),
        mock.patch.multiple(tail_cache, MOST_ITEMS=6, MOST_BYTES=90, BLOCK_ITEMS=3, BLOCK_BYTES=45),
        mock.patch.multiple(tail_cache, MOST_BYTES_OF_ONE=600, MOST_BYTES_IN_ALL=700),
    ):
        asyncio.run(follow(Path(directory) / "j.db", steps))


async def follow(path: Path, steps: list[Any]) -> None:
    other, ticks = Journal(path), 0
    async with CachedSession("s", journal=path) as session, CachedSession("t", journal=path) as two:
        assert await session.get_items() == []
        for what, count, limit in steps:
            ticks += count
            batch = [{"n": f"{ticks}-{n}"} for n in range(count)]
            author = Author("other", ticks, 1000)
            rows = [(json.dumps(item), 0) for item in batch]
            match what:
                case "append":
                    await session.add_items(batch)  # type: ignore[arg-type]
                case "pop":
                    before = scan(path)
                    assert await session.pop_item() == (before[-1] if before else None)
                case "clear":
                    await session.clear_session()
                case "other session":
                    await two.add_items(batch)  # type: ignore[arg-type]
                    assert len(await two.get_items(count)) == count
                case "other append":
                    await other.write(
                        lambda c, a=author, r=rows: writes.append(c, a, "s", r, private=False)
                    )
                case "other pop":
                    await other.write(lambda c, a=author: writes.pop(c, a, "s"))
                case "other clear":
                    await other.write(lambda c, a=author: writes.clear(c, a, "s"))
            expected = scan(path)
            for asked in (limit, None, limit):
                found: Any = await session.get_items(asked)
                assert found == (expected if asked is None else expected[-asked:])
                for item in found:
                    item["n"] = "changed by its caller"
            kept = session._engine.journal.history._tail_cache
            assert kept._size == sum(tail.size for tail in kept._tails.values()) <= 700
    await other.close()
