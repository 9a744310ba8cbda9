"""How far an import has come: a mark that is written in the transaction of what it tells of.

A mark says that the first n items of a source are in a session, with a digest over those n. Whoever
imports the source again, after a crash or on purpose, skips exactly those; a source that no longer
begins with them is refused by its reader instead of being imported twice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from cached_session.history.ids import session_key
from cached_session.journal import writes
from cached_session.journal.writes import Author, Written

__all__ = ["NOTHING", "Mark", "append_marked", "chained", "mark_key", "mark_of"]


@dataclass(frozen=True)
class Mark:
    """The first `count` items of a source are in, and this is their digest."""

    count: int
    chain: str


NOTHING = Mark(0, "")


def chained(chain: str, text: str) -> str:
    """The digest of a source one item longer."""
    return sha256(chain.encode() + sha256(text.encode()).digest()).hexdigest()


def mark_key(session_id: str, source: str, first: str) -> str:
    """Where the mark of a source stands: named by what it is and by its first item, because a file
    may be moved, and two files may bear the same name."""
    name = sha256(source.encode("utf-8", "surrogatepass"))
    name.update(sha256(first.encode()).digest())
    return f"import:{session_key(session_id)}:{name.hexdigest()[:32]}"


def mark_of(conn: sqlite3.Connection, key: str) -> Mark:
    """How far a source has been imported."""
    row = conn.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    if row is None:
        return NOTHING
    count, _, chain = row[0].partition(":")
    return Mark(int(count), chain)


def append_marked(
    conn: sqlite3.Connection,
    author: Author,
    session_id: str,
    encoded: Sequence[tuple[str, int]],
    *,
    private: bool,
    key: str,
    before: Mark,
    after: Mark,
) -> Written | None:
    """Append a batch and move the mark, both or neither.

    None, and nothing is written, if the mark is no longer where the caller saw it: somebody else
    imports the same source.
    """
    if mark_of(conn, key) != before:
        return None
    written = writes.append(conn, author, session_id, encoded, private=private)
    conn.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
        (key, f"{after.count}:{after.chain}"),
    )
    return written
