"""Items of a direct session, collected in any order and sorted on disk.

A direct session is one whose program stores items on a Dakera server without this library: each
item is a memory, with the item's JSON as the content and its number as ``seq`` in the metadata. A
server lists memories newest first. A temporary SQLite database sorts them, so that memory use stays
bounded.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

from cached_session.engine.importer import Row
from cached_session.journal.sqlite.codec import encode_item

__all__ = ["TAG", "DirectItems"]

TAG = "oai-session"
"""The tag of a memory that is an item of a direct session."""


class DirectItems:
    """The items of a direct session that were added so far; `close` deletes the temporary file."""

    def __init__(self) -> None:
        self._conn = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._conn.execute(
            "CREATE TABLE memory (id TEXT PRIMARY KEY, seq INTEGER NOT NULL, "
            "created NOT NULL, text TEXT NOT NULL) WITHOUT ROWID"
        )

    def add(self, memory: Mapping[str, Any]) -> bool:
        """Add a memory; replace a memory with the same id.

        Return False, and add nothing, if the memory is not an item.
        """
        metadata, tags = memory.get("metadata"), memory.get("tags")
        seq = metadata.get("seq") if isinstance(metadata, dict) else None
        is_numbered = isinstance(seq, (int, float)) and not isinstance(seq, bool)
        is_tagged = isinstance(tags, list) and TAG in tags
        name, text = memory.get("id"), memory.get("content")
        if not (is_numbered or is_tagged) or not isinstance(name, str) or not isinstance(text, str):
            return False
        self._conn.execute(
            "INSERT OR REPLACE INTO memory VALUES (?, ?, ?, ?)",
            (
                name.encode("utf-8", "surrogatepass"),
                int(seq) if is_numbered and seq is not None and abs(seq) < 1 << 62 else 0,
                _sortable_time(memory.get("created_at")),
                text.encode("utf-8", "surrogatepass"),
            ),
        )
        return True

    def __len__(self) -> int:
        (count,) = self._conn.execute("SELECT count(*) FROM memory").fetchone()
        return int(count)

    def rows(self) -> Iterator[Row]:
        """Yield the items in the order of their numbers; None for an item that is not valid JSON.

        Two memories with the same number and text are one item: the program got no answer to its
        store request and repeated it. Two memories with the same number and different texts are
        items of two writers.
        """
        texts = self._conn.execute(
            "SELECT text FROM memory GROUP BY seq, text ORDER BY seq, min(created), min(id)"
        )
        for (text,) in texts:
            try:
                yield encode_item(json.loads(text.decode("utf-8", "surrogatepass")))
            except (ValueError, RecursionError):
                yield None

    def close(self) -> None:
        """Close and delete the temporary database."""
        self._conn.close()


def _sortable_time(created: object) -> int | float | str:
    """Return the creation time of a memory in a form that SQLite can store and sort."""
    if isinstance(created, str):
        return created.encode("utf-8", "replace").decode()
    # NaN, and numbers that need more than 64 bits, are not times.
    return created if isinstance(created, (int, float)) and abs(created) < 1 << 62 else 0
