"""Text search in the journal: items that contain all words of a query, in any script.

The full-text index returns the operations that may contain the words. Without an index, or if the
words are too short for the index, the session is scanned. Both methods return the same items.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import islice

from cached_session.errors import InvalidArgument
from cached_session.history.item_text import normalize_text, role_and_text
from cached_session.history.order import Position
from cached_session.journal.tables import entry_rows, item_rows, search_index
from cached_session.journal.tables.sessions import session_row
from cached_session.journal.tables.states import Place
from cached_session.models import Entry

__all__ = ["find", "scan", "words"]


def words(query: object) -> list[str]:
    """Return the words of a query, normalized.

    Raises:
        InvalidArgument: the query has no word.
    """
    found = normalize_text(query).split() if isinstance(query, str) else []
    if not found:
        raise InvalidArgument(f"query={query!r} has no word to look for")
    return found


def find(conn: sqlite3.Connection, session_id: str, wanted: list[str], limit: int) -> list[Entry]:
    """Return the latest entries whose readable text contains every word, latest first.

    Raises:
        search_index.Spoiled: the index is damaged.
    """
    if limit <= 0 or not _are_possible(wanted):
        return []
    grams = search_index.terms(wanted)
    # Use one snapshot, because a rank is the number of items before an entry.
    with item_rows.snapshot(conn):
        reached = search_index.reach(conn)
        if not grams or reached is None:
            return scan(conn, session_id, wanted, limit)
        row = session_row(conn, session_id)
        if row is None:
            return []
        matches = _matches(conn, wanted, search_index.candidates(conn, row[0], grams, reached))
        return list(islice(entry_rows.ranked(conn, row[0], row[1], matches), limit))


def scan(conn: sqlite3.Connection, session_id: str, wanted: list[str], limit: int) -> list[Entry]:
    """Find the matching entries without the index: read the items one by one, latest first."""
    found: list[Entry] = []
    for entry, payload in entry_rows.entries_backwards(conn, session_id):
        if _contains(payload, wanted):
            found.append(entry)
            if len(found) >= limit:
                break
    return found


def _matches(
    conn: sqlite3.Connection,
    wanted: list[str],
    found: list[tuple[Place, int]],
) -> Iterator[Position]:
    for place, seq in found:
        for index, payload in reversed(item_rows.payloads_of(conn, seq)):
            if _contains(payload, wanted):
                yield (*place, index)


def _contains(payload: bytes, wanted: list[str]) -> bool:
    text = normalize_text(role_and_text(payload.decode(errors="replace"))[1])
    return all(word in text for word in wanted)


def _are_possible(wanted: list[str]) -> bool:
    """Return whether readable text can contain these words. Such text has no NUL and no lone
    surrogate."""
    return not any("\x00" in word or _has_surrogates(word) for word in wanted)


def _has_surrogates(word: str) -> bool:
    return any("\ud800" <= sign <= "\udfff" for sign in word)
