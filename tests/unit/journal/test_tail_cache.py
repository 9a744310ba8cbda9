"""The tail cache: how much it keeps of each history, and of all together."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import orjson
import pytest

from cached_session.journal import tail_cache as module
from cached_session.journal.sqlite.codec import EXACT, FAST
from cached_session.journal.sqlite.tracked_connection import TrackedConnection, Version
from cached_session.journal.tail_cache import (
    BLOCK_ITEMS,
    MOST_BYTES,
    MOST_BYTES_OF_ONE,
    MOST_ITEMS,
    Tail,
    TailCache,
)


@pytest.fixture
def version() -> Iterator[Version]:
    with closing(sqlite3.connect(":memory:", factory=TrackedConnection)) as conn:
        yield conn, 1, 1


def tail(*texts: bytes, revision: int = 1, whole: bool = True) -> Tail:
    return Tail.of(0, None, revision, texts, whole=whole)


def items(tail: Tail | None, limit: int | None) -> list[object] | None:
    """Return the latest items of a tail."""
    found = tail.arrays(limit) if tail is not None else None
    if found is None:
        return None
    blocks, before = found
    assert all(len(orjson.loads(block.array)) == block.items for block in blocks)
    return [item for block in blocks for item in orjson.loads(block.array)][before:]


def kept(tails: TailCache, *names: str) -> list[str]:
    return [name for name in names if tails.get(name) is not None]


def test_a_full_tail_keeps_the_latest_items(
    version: Version,
) -> None:
    """It has at least as many items as a short read needs, and no longer counts as the whole
    history."""
    tails = TailCache()
    tails.put("a", tail(*[b"0"] * (MOST_ITEMS - 1), whole=False))
    for number in range(1, 4 * MOST_ITEMS):
        tails.appended("a", number + 1, version, [(str(number), FAST)])
        kept = tails.get("a")
        assert kept is not None
        latest = [0] * MOST_ITEMS + list(range(1, number + 1))
        assert items(kept, MOST_ITEMS) == latest[-MOST_ITEMS:]
        assert items(kept, None) is None
        assert kept.size < 6 * (MOST_ITEMS + BLOCK_ITEMS)


def test_a_whole_history_is_kept_in_blocks(version: Version) -> None:
    """All of it and any part of it can be read while it grows and shrinks."""
    tails, count = TailCache(), 3 * MOST_ITEMS
    tails.put("a", tail())
    for number in range(count):
        tails.appended("a", number + 2, version, [(str(number), FAST)])
    whole = list(range(count))
    for limit in (1, 2, MOST_ITEMS - 1, MOST_ITEMS, MOST_ITEMS + 1, count - 1, count, count + 1):
        assert items(tails.get("a"), limit) == whole[-limit:]
    assert items(tails.get("a"), None) == whole
    tails.popped("a", count + 2, version)
    assert items(tails.get("a"), None) == whole[:-1]
    tails.appended("a", count + 3, version, [(str(number), FAST) for number in whole])
    assert items(tails.get("a"), None) == whole[:-1] + whole
    kept = tails.get("a")
    assert kept is not None
    assert kept.size == sum(len(block.array) for block in kept.blocks) + sum(map(len, kept.texts))


def test_a_tail_continues_only_from_the_previous_revision(version: Version) -> None:
    """A write by another connection in between, or an item of the other codec, ends it."""
    tails = TailCache()
    for text, codec, revision in (("1", FAST, 3), ("1", EXACT, 2)):
        tails.put("a", tail(b"0"))
        tails.appended("a", revision, version, [(text, codec)])
        assert tails.get("a") is None
    tails.put("a", tail(b"0", b"1"))
    tails.popped("a", 2, version)
    left = tails.get("a")
    assert left is not None
    assert (left.texts, left.size, left.revision) == ((b"0",), 1, 2)
    tails.popped("a", 4, version)
    assert tails.get("a") is None


@pytest.mark.promise(number=10)
def test_all_tails_together_are_bounded(monkeypatch: pytest.MonkeyPatch, version: Version) -> None:
    """Their bytes and their number are limited, and the least recently used are dropped first."""
    monkeypatch.setattr(module, "MOST_BYTES_IN_ALL", 100)
    monkeypatch.setattr(module, "MOST_SESSIONS", 4)
    tails = TailCache()
    tails.put("a", tail(b"x" * 40))
    tails.put("b", tail(b"x" * 40))
    tails.put("a", tail(b"x" * 50))  # in its own place: nobody has to go
    assert kept(tails, "a", "b") == ["a", "b"]
    tails.appended("b", 2, version, [("x" * 20, FAST)])
    assert kept(tails, "a", "b") == ["b"]
    tails.popped("b", 3, version)
    tails.put("c", tail(b"x" * 60))
    assert kept(tails, "b", "c") == ["b", "c"]
    tails.put("d", tail(b"x"))
    assert kept(tails, "b", "c", "d") == ["c", "d"]
    for name in "efg":
        tails.put(name, tail(b""))
    assert kept(tails, *"abcdefg") == ["d", "e", "f", "g"]
    tails.forget()
    assert kept(tails, *"abcdefg") == []
    tails.put("h", replace(tail(b"x" * 100), file=tails.file))
    assert kept(tails, "h") == ["h"]


@pytest.mark.promise(number=10)
def test_of_a_large_history_the_end_is_kept(version: Version) -> None:
    """The tail takes no more memory than a short read needs, and is dropped if the items are
    large."""
    tails = TailCache()
    large = b"x" * (MOST_BYTES // 2)
    tails.put("a", tail(*[large] * (MOST_BYTES_OF_ONE // len(large) - 1)))
    assert (kept := tails.get("a")) is not None
    assert kept.whole
    tails.appended("a", 2, version, [(large.decode(), FAST), ("1", FAST)])
    assert (kept := tails.get("a")) is not None
    assert not kept.whole
    assert kept.size <= 2 * MOST_BYTES + 2
    tails.put("b", tail(b"x" * (MOST_BYTES + 1), whole=False))
    assert tails.get("b") is None
    for name in map(str, range(2)):
        tails.put(name, tail(*[large] * (MOST_BYTES_OF_ONE // len(large) - 1)))
    assert kept_bytes(tails, "a", "0", "1") <= module.MOST_BYTES_IN_ALL


def kept_bytes(tails: TailCache, *names: str) -> int:
    return sum(tail.size for name in names if (tail := tails.get(name)) is not None)
