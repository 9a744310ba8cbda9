"""What is kept of the ends of histories: how much of each, and how much in all."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from cached_session.journal import tails as module
from cached_session.journal.codec import EXACT, FAST
from cached_session.journal.tails import MOST_BYTES, MOST_ITEMS, Seen, Tail, Tails


@pytest.fixture
def version() -> Iterator[Seen]:
    with closing(sqlite3.connect(":memory:")) as conn:
        yield conn, 1, 1


def tail(*texts: bytes, revision: int = 1, whole: bool = True) -> Tail:
    return Tail(0, None, revision, texts, whole, sum(map(len, texts)))


def kept(tails: Tails, *names: str) -> list[str]:
    return [name for name in names if tails.get(name) is not None]


def test_a_tail_that_fills_up_keeps_the_latest_and_tells_of_no_whole_history(version: Seen) -> None:
    """As many items as a read takes on the spot; the oldest go first, and then it is not whole."""
    tails = Tails()
    tails.put("a", tail(*[b"0"] * (MOST_ITEMS - 1)))
    tails.appended("a", 2, version, [("1", FAST)])
    full = tails.get("a")
    assert full is not None
    assert full.latest(None) == (*[b"0"] * (MOST_ITEMS - 1), b"1")
    tails.appended("a", 3, version, [("2", FAST)])
    cut = tails.get("a")
    assert cut is not None
    assert cut.latest(None) is None
    assert cut.latest(MOST_ITEMS) == (*[b"0"] * (MOST_ITEMS - 2), b"1", b"2")
    assert cut.size == MOST_ITEMS


def test_a_tail_goes_on_only_from_the_revision_before(version: Seen) -> None:
    """A write of somebody else in between, or an item for the other library, ends it."""
    tails = Tails()
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
def test_all_tails_together_are_bounded(monkeypatch: pytest.MonkeyPatch, version: Seen) -> None:
    """In bytes and in number: those that were kept longest go, whichever way another one grows."""
    monkeypatch.setattr(module, "MOST_BYTES_IN_ALL", 100)
    monkeypatch.setattr(module, "MOST_SESSIONS", 4)
    tails = Tails()
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


def test_a_tail_too_large_is_not_kept(version: Seen) -> None:
    """Neither at first nor once it has grown; it takes no room from others then."""
    tails = Tails()
    tails.put("a", tail(b"x" * (MOST_BYTES + 1)))
    assert tails.get("a") is None
    tails.put("a", tail(b"x" * MOST_BYTES))
    assert tails.get("a") is not None
    tails.appended("a", 2, version, [("x", FAST)])
    assert tails.get("a") is None
    for name in map(str, range(module.MOST_BYTES_IN_ALL // MOST_BYTES)):
        tails.put(name, tail(b"x" * MOST_BYTES))
    assert tails.get("0") is not None
