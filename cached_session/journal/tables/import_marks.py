"""Import marks: how far each import has come, written in the transaction of its items.

A mark says that the first n items of a source are in a session, with a digest of those n. Another
import of the source skips exactly those. If the source no longer begins with them, it is refused
instead of being imported twice.
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
    "mark_at",
    "mark_key",
    "mark_named",
    "name_key",
]


@dataclass(frozen=True)
class Mark:
    """The progress of the import of one source."""

    count: int
    """Items from its beginning that are in the session."""
    chain: str
    """The digest of those items."""


NOTHING = Mark(0, "")


def chained(chain: str, text: str) -> str:
    """Return the digest of a source that is one item longer."""
    return sha256(chain.encode() + sha256(text.encode()).digest()).hexdigest()


def mark_key(session_id: str, source: str, first: str) -> str:
    """Return the key of a source's mark.

    It depends on the source's kind and first item, not on its name: a file may be moved, and two
    files may have the same name.
    """
    name = sha256(source.encode("utf-8", "surrogatepass"))
    name.update(sha256(first.encode()).digest())
    return f"import:{session_key(session_id)}:{name.hexdigest()[:32]}"


def name_key(session_id: str, source: str) -> str:
    """Return the key under which a source's name is stored, for sources that have unique names.

    Its value is the key of the mark. A source of this name with another first item has been
    rewritten; it is not another source.
    """
    name = sha256(b"name:" + source.encode("utf-8", "surrogatepass"))
    return f"import:{session_key(session_id)}:{name.hexdigest()[:32]}"


def mark_named(conn: sqlite3.Connection, name: str) -> tuple[str, Mark]:
    """Return the key of the mark with this name, and the mark; an empty key if there is none."""
    row = conn.execute("SELECT value FROM meta WHERE key = ?", (name,)).fetchone()
    return ("", NOTHING) if row is None else (row[0], mark_at(conn, row[0]))


def mark_at(conn: sqlite3.Connection, key: str) -> Mark:
    """Return how far the source with this key has been imported."""
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
    """Append a batch and move the mark at ``key``; ``name``: the key of the source's name.

    Return None, and write nothing, if another import has moved the mark since the caller read it.
    """
    if mark_at(conn, key) != before:
        return None
    facts = {key: f"{after.count}:{after.chain}"}
    if name is not None:
        if mark_named(conn, name)[0] not in ("", key):
            return None
        facts[name] = key
    written = writes.append(conn, author, session_id, encoded, private=private)
    write_meta(conn, **facts)
    return written
