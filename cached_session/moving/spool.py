"""Memories of a direct Dakera session, put in order outside of memory.

Such a session stores each item as one memory: the item's JSON is the content, its number is `seq`
in the metadata. A server lists them newest first; a temporary database of SQLite sorts them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

from cached_session.engine.importer import Row
from cached_session.journal.sqlite.codec import encode_item

__all__ = ["TAG", "Spool"]

TAG = "oai-session"
"""What marks a memory as an item of a direct session."""


class Spool:
    """What has been read of a direct session so far. Close it: its file goes with it."""

    def __init__(self) -> None:
        self._conn = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._conn.execute(
            "CREATE TABLE memory (id TEXT PRIMARY KEY, seq INTEGER NOT NULL, "
            "created NOT NULL, text TEXT NOT NULL) WITHOUT ROWID"
        )

    def add(self, memory: Mapping[str, Any]) -> bool:
        """Take a memory; False if it is no item of a direct session. Seen twice it is one."""
        metadata, tags = memory.get("metadata"), memory.get("tags")
        seq = metadata.get("seq") if isinstance(metadata, dict) else None
        numbered = isinstance(seq, (int, float)) and not isinstance(seq, bool)
        tagged = isinstance(tags, list) and TAG in tags
        name, text = memory.get("id"), memory.get("content")
        if not (numbered or tagged) or not isinstance(name, str) or not isinstance(text, str):
            return False
        self._conn.execute(
            "INSERT OR REPLACE INTO memory VALUES (?, ?, ?, ?)",
            (
                name.encode("utf-8", "surrogatepass"),
                int(seq) if numbered and seq is not None and abs(seq) < 1 << 62 else 0,
                _when(memory.get("created_at")),
                text.encode("utf-8", "surrogatepass"),
            ),
        )
        return True

    def __len__(self) -> int:
        (found,) = self._conn.execute("SELECT count(*) FROM memory").fetchone()
        return int(found)

    def rows(self) -> Iterator[Row]:
        """The items by their numbers. Two memories with one number and one text are one item whose
        first store went unanswered; with one number and two texts they are two writers' items."""
        found = self._conn.execute(
            "SELECT text FROM memory GROUP BY seq, text ORDER BY seq, min(created), min(id)"
        )
        for (text,) in found:
            try:
                yield encode_item(json.loads(text.decode("utf-8", "surrogatepass")))
            except (ValueError, RecursionError):
                yield None

    def close(self) -> None:
        """Let go of the temporary database."""
        self._conn.close()


def _when(created: object) -> int | float | str:
    """A server's word for when a memory was stored, as SQLite can keep and sort it."""
    if isinstance(created, str):
        return created.encode("utf-8", "replace").decode()
    # No other number is a time: neither NaN, nor one that needs more than 64 bits.
    return created if isinstance(created, (int, float)) and abs(created) < 1 << 62 else 0
