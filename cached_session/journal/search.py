"""Local text search: every item that contains all the words. Works offline, in any script.

The index names the operations that may hold the words; where there is none, or where the words are
too short for it, the whole session is looked through. Both ways find the same.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import islice

from cached_session.errors import InvalidArgument
from cached_session.history.item_text import normalize_text, role_and_text
from cached_session.journal.tables import item_rows, search_index
from cached_session.journal.tables.sessions import session_row
from cached_session.models import Entry

__all__ = ["find", "scan", "words"]


def words(query: object) -> list[str]:
    """The words of a query, folded.

    Raises:
        InvalidArgument: there is none.
    """
    found = normalize_text(query).split() if isinstance(query, str) else []
    if not found:
        raise InvalidArgument(f"query={query!r} has no word to look for")
    return found


def find(conn: sqlite3.Connection, session_id: str, wanted: list[str], limit: int) -> list[Entry]:
    """The latest entries whose readable text contains every word; latest first.

    Raises:
        fulltext.Spoiled: the index is damaged.
    """
    if limit <= 0 or not _can_be_there(wanted):
        return []
    grams = search_index.terms(wanted)
    # One snapshot: a rank counts the items that stand before an entry at this moment.
    with item_rows.snapshot(conn):
        reached = search_index.reach(conn)
        if not grams or reached is None:
            return scan(conn, session_id, wanted, limit)
        row = session_row(conn, session_id)
        if row is None:
            return []
        matches = _matches(
            conn, row[0], wanted, search_index.candidates(conn, row[0], grams, reached)
        )
        return list(islice(item_rows.ranked(conn, row[0], row[1], matches), limit))


def scan(conn: sqlite3.Connection, session_id: str, wanted: list[str], limit: int) -> list[Entry]:
    """`find` without the index, by looking at every item from the latest on."""
    found: list[Entry] = []
    for entry, payload in item_rows.entries_backwards(conn, session_id, None):
        if _holds(payload, wanted):
            found.append(entry)
            if len(found) >= limit:
                break
    return found


def _matches(
    conn: sqlite3.Connection, session: int, wanted: list[str], held: list[tuple[int, str, int]]
) -> Iterator[item_rows.Position]:
    for position in held:
        items = conn.execute(
            "SELECT idx, CAST(payload AS BLOB) FROM items "
            "WHERE session = ? AND stamp = ? AND writer = ? AND counter = ? ORDER BY idx DESC",
            (session, *position),
        ).fetchall()
        for idx, payload in items:
            if _holds(payload, wanted):
                yield (*position, idx)


def _holds(payload: bytes, wanted: list[str]) -> bool:
    text = normalize_text(role_and_text(payload.decode(errors="replace"))[1])
    return all(word in text for word in wanted)


def _can_be_there(wanted: list[str]) -> bool:
    """Whether readable text can hold these at all: it has no NUL and no lone surrogates."""
    return not any("\x00" in word or _has_surrogates(word) for word in wanted)


def _has_surrogates(word: str) -> bool:
    return any("\ud800" <= sign <= "\udfff" for sign in word)
