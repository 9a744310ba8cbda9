"""A cache of the latest items of sessions in use, as JSON text. A tail is valid until its session
changes.

An agent reads its history in each turn, and usually no other writer has changed the history since
the last read. Checking for a change in SQLite costs a sixth of reading 20 items. Callers get new
objects, decoded from the text.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cached_session.journal.sqlite.codec import FAST, array_of
from cached_session.journal.sqlite.tracked_connection import Version

__all__ = ["Block", "Tail", "TailCache"]

MOST_ITEMS = 512
MOST_BYTES = 256 * 1024
"""Maximum number of items, and of bytes, that a tail stores as single texts. A short read has equal
limits (`get_items.SHORT_ITEMS` and `get_items.SHORT_BYTES`)."""
BLOCK_ITEMS = 256
BLOCK_BYTES = 128 * 1024
"""Maximum number of items, and of bytes, of one block. Items that are older than the single texts
are joined to blocks."""
MOST_BYTES_IN_ALL = 16 * 1024 * 1024
MOST_BYTES_OF_ONE = MOST_BYTES_IN_ALL // 2
"""Maximum number of bytes of all tails, and of one history that is cached as a whole. The remaining
space is for other sessions."""
MOST_SESSIONS = 1024
"""Maximum number of sessions in the cache."""


class Block(NamedTuple):
    """Consecutive items as one JSON array, which is decoded in one call."""

    array: bytes
    items: int


@dataclass(frozen=True)
class Tail:
    """The latest items of a session at one revision, oldest first."""

    file: int
    """Value of `TailCache.file` when the tail was read."""
    version: Version | None
    """State of all histories (see `version_of`) when the tail was read; None if the state was
    unknown."""
    revision: int
    """The revision of the session to which the tail belongs."""
    blocks: tuple[Block, ...]
    """The older items of the tail."""
    texts: tuple[bytes, ...]
    """The latest items as single texts. They follow the items in the blocks."""
    whole: bool
    """True if the tail has all items of the session."""
    size: int
    """Size of all items in this tail, in bytes."""
    size_of_texts: int
    """Size of `texts`, in bytes."""

    @classmethod
    def of(
        cls,
        file: int,
        version: Version | None,
        revision: int,
        texts: Sequence[bytes],
        *,
        whole: bool,
        blocks: Iterable[Block] = (),
    ) -> Tail:
        """Return a tail that consists of these items."""
        kept = tuple(blocks)
        size = sum([len(block.array) for block in kept])
        before = cls(file, version, revision, kept, (), whole, size, 0)
        return before.followed(revision, version, texts)

    def latest(self, limit: int | None) -> Sequence[bytes] | None:
        """Return the texts of the latest ``limit`` items; None if some of these items are not
        cached, or only as part of a block (several items as one text)."""
        if limit is not None and limit <= len(self.texts):
            return self.texts[len(self.texts) - limit :]
        return self.texts if self.whole and not self.blocks else None

    def arrays(self, limit: int | None) -> tuple[list[Block], int] | None:
        """Return arrays that end with the latest ``limit`` items (with None, all items), and the
        number of items in the arrays before these items. Return None if some of these items are not
        cached."""
        first, before = 0, 0
        if limit is not None:
            first, before = len(self.blocks), len(self.texts) - limit
            while before < 0 and first:
                first -= 1
                before += self.blocks[first].items
        if before < 0 or limit is None:
            if not self.whole:
                return None
            before = 0
        last = Block(array_of(self.texts), len(self.texts))
        return [*self.blocks[first:], last], before

    def followed(self, revision: int, version: Version | None, added: Sequence[bytes]) -> Tail:
        """Return this tail with items appended. The oldest texts are joined to blocks. A tail that
        is not the whole history drops blocks that a short read does not need."""
        texts = (*self.texts, *added)
        before, last = self.size - self.size_of_texts, self.size_of_texts + sum(map(len, added))
        blocks, start = list(self.blocks), 0
        while len(texts) - start > MOST_ITEMS or last > MOST_BYTES:
            some = _oldest(texts, start)
            blocks.append(Block(array_of(some), len(some)))
            start += len(some)
            last -= sum(map(len, some))
            before += len(blocks[-1].array)
        whole = self.whole and before + last <= MOST_BYTES_OF_ONE
        if not whole:
            count = len(texts) - start + sum([block.items for block in blocks])
            while blocks and (count - blocks[0].items >= MOST_ITEMS or before > MOST_BYTES):
                gone = blocks.pop(0)
                count, before = count - gone.items, before - len(gone.array)
        return Tail(
            self.file,
            version,
            revision,
            tuple(blocks),
            texts[start:],
            whole,
            before + last,
            last,
        )

    def popped(self, revision: int, version: Version | None) -> Tail | None:
        """Return this tail without its last item; None if the item is cached only as part of a
        block (several items as one text)."""
        if not self.texts:
            return None
        *texts, gone = self.texts
        less = len(gone)
        size, last = self.size - less, self.size_of_texts - less
        return Tail(self.file, version, revision, self.blocks, tuple(texts), self.whole, size, last)


def _oldest(texts: Sequence[bytes], start: int) -> list[bytes]:
    """Return as many texts, from ``start`` on, as fit into one block."""
    found: list[bytes] = []
    size = 0
    for text in texts[start : start + BLOCK_ITEMS]:
        size += len(text)
        if found and size > BLOCK_BYTES:
            break
        found.append(text)
    return found


class TailCache:
    """The tails of the sessions in use. Safe to use from several threads."""

    def __init__(self) -> None:
        self._tails: OrderedDict[str, Tail] = OrderedDict()
        self._lock = threading.Lock()
        self._size = 0
        self.file = 0
        """Number of times that another file has replaced the journal."""

    def forget(self) -> None:
        """Remove all tails, because another file has replaced the journal."""
        with self._lock:
            self.file += 1
            self._tails.clear()
            self._size = 0

    def get(self, session_id: str) -> Tail | None:
        """Return the tail of a session; None if no tail is cached. The caller checks whether the
        tail is still valid."""
        tail = self._tails.get(session_id)
        return tail if tail is not None and tail.file == self.file else None

    def put(self, session_id: str, tail: Tail) -> None:
        """Cache a tail. If the cache is too large, remove the tails that were cached least
        recently."""
        with self._lock:
            self._drop(session_id)
            self._keep(session_id, tail)

    def appended(
        self,
        session_id: str,
        revision: int,
        version: Version,
        encoded: Sequence[tuple[str, int]],
    ) -> None:
        """Add a batch to a tail. ``revision`` is the session's revision after the append. A tail
        that does not have the preceding revision is removed. ``version`` is the state of all
        histories after the append, if no other write changed a history in the same commit.
        """
        with self._lock:
            tail = self._before(session_id, revision)
            if tail is not None and not any(codec != FAST for _, codec in encoded):
                added = [text.encode() for text, _ in encoded]
                self._keep(session_id, tail.followed(revision, version, added))

    def drop(self, session_id: str) -> None:
        """Remove the tail of a session from the cache."""
        with self._lock:
            self._drop(session_id)

    def popped(self, session_id: str, revision: int, version: Version) -> None:
        """Remove the popped last item from a tail. ``revision`` and ``version`` are the values
        after the pop; see `appended`."""
        with self._lock:
            tail = self._before(session_id, revision)
            if tail is not None and (left := tail.popped(revision, version)) is not None:
                self._keep(session_id, left)

    def _before(self, session_id: str, revision: int) -> Tail | None:
        """Remove the tail of a session from the cache. Return the tail if its revision directly
        precedes ``revision``."""
        tail = self._drop(session_id)
        return tail if tail is not None and tail.revision == revision - 1 else None

    def _drop(self, session_id: str) -> Tail | None:
        tail = self._tails.pop(session_id, None)
        if tail is not None:
            self._size -= tail.size
        return tail

    def _keep(self, session_id: str, tail: Tail) -> None:
        if not tail.whole and not tail.size:
            return
        self._tails[session_id] = tail
        self._size += tail.size
        while self._size > MOST_BYTES_IN_ALL or len(self._tails) > MOST_SESSIONS:
            _, oldest = self._tails.popitem(last=False)
            self._size -= oldest.size
