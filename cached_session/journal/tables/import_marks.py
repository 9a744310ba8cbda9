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
from cached_session.journal.tables import writes
from cached_session.journal.tables.meta import write_meta
from cached_session.journal.tables.writes import Author, Written

__all__ = [
    "NOTHING",
    "Mark",
    "append_marked",
    "chained",
    "mark_key",
    "mark_of",
    "name_key",
    "named",
]


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


def name_key(session_id: str, source: str) -> str:
    """Where it is written which mark is that of a source whose name says all: one that begins with
    another item than it did has been rewritten, and is not another source."""
    name = sha256(b"name:" + source.encode("utf-8", "surrogatepass"))
    return f"import:{session_key(session_id)}:{name.hexdigest()[:32]}"


def named(conn: sqlite3.Connection, name: str) -> tuple[str, Mark]:
    """The key of the mark that a name has, and the mark; nothing if there is none."""
    row = conn.execute("SELECT value FROM meta WHERE key = ?", (name,)).fetchone()
    return ("", NOTHING) if row is None else (row[0], mark_of(conn, row[0]))


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
    name: str | None = None,
) -> Written | None:
    """Append a batch and move the mark, both or neither; ``name``: the key of what has that mark.

    None, and nothing is written, if the mark is no longer where the caller saw it: somebody else
    imports the same source.
    """
    if mark_of(conn, key) != before:
        return None
    facts = {key: f"{after.count}:{after.chain}"}
    if name is not None:
        if named(conn, name)[0] not in ("", key):
            return None
        facts[name] = key
    written = writes.append(conn, author, session_id, encoded, private=private)
    write_meta(conn, **facts)
    return written
