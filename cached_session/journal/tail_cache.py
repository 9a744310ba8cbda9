"""The ends of histories in use, or the whole of them, as JSON text: valid until their session
changes.

An agent reads its history at each turn, its tail or all of it, and nearly always nobody but itself
has written since. Asking SQLite whether that is so costs a sixth of reading 20 items from it, and a
caller still gets fresh objects, decoded from the text.
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
"""Of the latest items, which are kept one by one: what a read does on the spot
(`items.SHORT_ITEMS`)."""
BLOCK_ITEMS = 256
BLOCK_BYTES = 128 * 1024
"""Of those before them that are put together as one array once there are more."""
MOST_BYTES_IN_ALL = 16 * 1024 * 1024
MOST_BYTES_OF_ONE = MOST_BYTES_IN_ALL // 2
"""A history that is larger than this is not kept as a whole: the others need room, too."""
MOST_SESSIONS = 1024
"""However small they are."""


class Block(NamedTuple):
    """Neighbouring items as one JSON array, which is decoded in one go."""

    array: bytes
    items: int


@dataclass(frozen=True)
class Tail:
    """The latest items of a session at one revision, oldest first."""

    file: int
    """`TailCache.file` when it was read."""
    version: Version | None
    """No history was changed while this stays the same; None if it could not be asked."""
    revision: int
    blocks: tuple[Block, ...]
    texts: tuple[bytes, ...]
    """The last of them, one by one."""
    whole: bool
    """Whether these are all there are."""
    size: int
    """Bytes of all of it ..."""
    size_of_texts: int
    """... and of the last."""

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
        """Of these items."""
        kept = tuple(blocks)
        size = sum([len(block.array) for block in kept])
        before = cls(file, version, revision, kept, (), whole, size, 0)
        return before.followed(revision, version, texts)

    def latest(self, limit: int | None) -> Sequence[bytes] | None:
        """The latest ``limit`` texts; None if they are not kept one by one."""
        if limit is not None and limit <= len(self.texts):
            return self.texts[len(self.texts) - limit :]
        return self.texts if self.whole and not self.blocks else None

    def arrays(self, limit: int | None) -> tuple[list[Block], int] | None:
        """The latest ``limit`` items, and how many there are before them in the first array; None
        if this tail cannot tell."""
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
        """With what was appended since. The oldest go into blocks; what is not the whole history
        lets go of those that a short read does not need."""
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
        """Without the last item; None if it is in a block."""
        if not self.texts:
            return None
        *texts, gone = self.texts
        less = len(gone)
        size, last = self.size - less, self.size_of_texts - less
        return Tail(self.file, version, revision, self.blocks, tuple(texts), self.whole, size, last)


def _oldest(texts: Sequence[bytes], start: int) -> list[bytes]:
    """The first of them from there on, as many as make a block."""
    found: list[bytes] = []
    size = 0
    for text in texts[start : start + BLOCK_ITEMS]:
        size += len(text)
        if found and size > BLOCK_BYTES:
            break
        found.append(text)
    return found


class TailCache:
    """Tails of the sessions in use. Safe to use from several threads."""

    def __init__(self) -> None:
        self._tails: OrderedDict[str, Tail] = OrderedDict()
        self._lock = threading.Lock()
        self._size = 0
        self.file = 0
        """Counts the files that have had the journal's name: part of every version."""

    def forget(self) -> None:
        """Another file is the journal now: nothing that is kept says anything of it."""
        with self._lock:
            self.file += 1
            self._tails.clear()
            self._size = 0

    def get(self, session_id: str) -> Tail | None:
        """What is kept of a session. Whether it is still true is for the caller to find out."""
        tail = self._tails.get(session_id)
        return tail if tail is not None and tail.file == self.file else None

    def put(self, session_id: str, tail: Tail) -> None:
        """Keep a tail, in place of those that were kept longest."""
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
        """A batch was appended here, which made the session's revision this one: a tail of the
        revision before it goes on with the batch, and any other one is let go of.

        ``version`` is what the journal has seen then, if nothing else shares the commit."""
        with self._lock:
            tail = self._before(session_id, revision)
            if tail is not None and not any(codec != FAST for _, codec in encoded):
                added = [text.encode() for text, _ in encoded]
                self._keep(session_id, tail.followed(revision, version, added))

    def popped(self, session_id: str, revision: int, version: Version) -> None:
        """The last item of all was popped here: as `appended`, without that item."""
        with self._lock:
            tail = self._before(session_id, revision)
            if tail is not None and (left := tail.popped(revision, version)) is not None:
                self._keep(session_id, left)

    def _before(self, session_id: str, revision: int) -> Tail | None:
        """The tail of the revision before this one; it is let go of, as is any other one."""
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
