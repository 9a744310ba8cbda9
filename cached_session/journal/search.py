"""Local text search: every item that contains all the words. Works offline, in any script."""

from __future__ import annotations

import sqlite3
import unicodedata

from cached_session.errors import InvalidArgument
from cached_session.history.text import readable
from cached_session.journal import reads
from cached_session.status import Entry

__all__ = ["find", "words"]


def words(query: object) -> list[str]:
    """The words of a query, folded.

    Raises:
        InvalidArgument: there is none.
    """
    found = _folded(query).split() if isinstance(query, str) else []
    if not found:
        raise InvalidArgument(f"query={query!r} has no word to look for")
    return found


def find(conn: sqlite3.Connection, session_id: str, wanted: list[str], limit: int) -> list[Entry]:
    """The latest entries whose readable text contains every word; latest first."""
    found: list[Entry] = []
    if limit <= 0:
        return found
    for entry, payload in reads.entries_backwards(conn, session_id, None):
        text = _folded(readable(payload.decode(errors="replace"))[1])
        if all(word in text for word in wanted):
            found.append(entry)
            if len(found) >= limit:
                break
    return found


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
