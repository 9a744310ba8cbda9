"""The ends of histories in use, kept as JSON text: valid until their session changes.

An agent reads the tail of its history at each turn, and nearly always nobody but itself has written
since. Asking SQLite whether that is so costs a sixth of reading 20 items from it, and a caller
still gets fresh objects, decoded from the text.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from cached_session.journal.codec import FAST

__all__ = ["Seen", "Tail", "Tails", "seen"]

MOST_ITEMS = 512
MOST_BYTES = 256 * 1024
"""Of one tail: what a read does on the spot (`items.SHORT_ITEMS`)."""
MOST_BYTES_IN_ALL = 16 * 1024 * 1024
MOST_SESSIONS = 1024
"""However small they are."""

Seen = tuple[sqlite3.Connection, int, int]
"""What the connection that writes knows of the file: the first number changes with the commits of
others, the second with its own. Any other connection cannot tell whose a commit was; and another
one, after the file was opened again, counts anew."""


def seen(conn: sqlite3.Connection) -> Seen:
    """What this connection has seen of the file."""
    (others,) = conn.execute("PRAGMA data_version").fetchone()
    return conn, others, conn.total_changes


@dataclass(frozen=True)
class Tail:
    """The latest items of a session at one revision, oldest first."""

    file: int
    """`Tails.file` when it was read."""
    version: Seen | None
    """Nothing was committed while this stays the same; None if it could not be asked."""
    revision: int
    texts: tuple[bytes, ...]
    whole: bool
    """Whether these are all there are."""
    size: int
    """Bytes of the texts."""

    def latest(self, limit: int | None) -> Sequence[bytes] | None:
        """The latest ``limit`` texts; None if this tail cannot tell."""
        if limit is not None and limit <= len(self.texts):
            return self.texts[len(self.texts) - limit :]
        return self.texts if self.whole else None


class Tails:
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
        version: Seen,
        encoded: Sequence[tuple[str, int]],
    ) -> None:
        """A batch was appended here, which made the session's revision this one: a tail of the
        revision before it goes on with the batch, and any other one is let go of.

        ``version`` is what the journal has seen then, if nothing else shares the commit."""
        with self._lock:
            tail = self._before(session_id, revision)
            if tail is None or any(codec != FAST for _, codec in encoded):
                return
            added = [text.encode() for text, _ in encoded]
            texts = (*tail.texts, *added)
            gone = texts[:-MOST_ITEMS]
            size = tail.size + sum(map(len, added)) - sum(map(len, gone))
            whole = tail.whole and not gone
            grown = Tail(tail.file, version, revision, texts[len(gone) :], whole, size)
            self._keep(session_id, grown)

    def popped(self, session_id: str, revision: int, version: Seen) -> None:
        """The last item of all was popped here: as `appended`, without that item."""
        with self._lock:
            tail = self._before(session_id, revision)
            if tail is not None and tail.texts:
                *texts, last = tail.texts
                size = tail.size - len(last)
                shrunk = Tail(tail.file, version, revision, tuple(texts), tail.whole, size)
                self._keep(session_id, shrunk)

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
        if tail.size > MOST_BYTES:
            return
        self._tails[session_id] = tail
        self._size += tail.size
        while self._size > MOST_BYTES_IN_ALL or len(self._tails) > MOST_SESSIONS:
            _, oldest = self._tails.popitem(last=False)
            self._size -= oldest.size
