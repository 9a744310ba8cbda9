"""Import marks: the progress of each import, written in the same transaction as the items.

A mark states that the first n items of a source are in a session, and has a digest of these n
items. Another import of the source skips exactly these items. If the source no longer begins with
them, the import is refused, so that no item is imported twice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from cached_session.history.ids import session_key
from cached_session.history.turns import TurnChoice
from cached_session.journal.tables import writes
from cached_session.journal.tables.calls import answered_calls
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
    """The number of items, from the beginning of the source, that are in the session."""
    chain: str
    """The digest of the first `count` items."""


NOTHING = Mark(0, "")
"""The mark of a source of which no item is imported."""


def chained(chain: str, text: str) -> str:
    """Return the digest of a source after one more item. ``chain`` is the digest of the
    preceding items."""
    return sha256(chain.encode() + sha256(text.encode()).digest()).hexdigest()


def mark_key(session_id: str, source: str, first: str) -> str:
    """Return the key of a source's mark.

    The key depends on the source's kind and first item, not on its name: a file may be moved, and
    two files may have the same name.
    """
    name = sha256(source.encode("utf-8", "surrogatepass"))
    name.update(sha256(first.encode()).digest())
    return f"import:{session_key(session_id)}:{name.hexdigest()[:32]}"


def name_key(session_id: str, source: str) -> str:
    """Return the key under which a source's name is stored, for sources that have unique names.

    The value of this meta row is the key of the mark. If a source with this name has another first
    item, the source was rewritten: it does not count as a new source.
    """
    name = sha256(b"name:" + source.encode("utf-8", "surrogatepass"))
    return f"import:{session_key(session_id)}:{name.hexdigest()[:32]}"


def mark_named(conn: sqlite3.Connection, name: str) -> tuple[str, Mark]:
    """Return the key of a named source's mark, and the mark; an empty key if no mark exists."""
    row = conn.execute("SELECT value FROM meta WHERE key = ?", (name,)).fetchone()
    return ("", NOTHING) if row is None else (row[0], mark_at(conn, row[0]))


def mark_at(conn: sqlite3.Connection, key: str) -> Mark:
    """Return the mark with this key; `NOTHING` if no mark exists."""
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
    """Append a batch, and change the mark at ``key`` from ``before`` to ``after``.

    ``name`` is the key of the source's name, if the source has a unique name. Return None, and
    write nothing, if another import has changed the mark since the caller read it.
    """
    if mark_at(conn, key) != before:
        return None
    facts = {key: f"{after.count}:{after.chain}"}
    if name is not None:
        if mark_named(conn, name)[0] not in ("", key):
            return None
        facts[name] = key
    # A batch may begin between a call and its output. In this case the batch joins the turn of the
    # call.
    choice = TurnChoice(answers=answered_calls(text for text, _ in encoded))
    written = writes.append(conn, author, session_id, encoded, private=private, choice=choice)
    write_meta(conn, **facts)
    return written
