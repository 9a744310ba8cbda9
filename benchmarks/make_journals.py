"""Journals that are only made to be measured: quickly, and with their search index in step."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from cached_session import CachedSession, SyncOptions
from cached_session.journal.tables import search_index
from conversations import Item, chunks

__all__ = ["MADE", "index", "make"]

MADE = SyncOptions(durability="normal")
"""Nobody waits for the disk while a journal is made."""


async def make(
    path: Path, session_id: str, items: Sequence[Item], batches: Iterable[Sequence[Any]] = ()
) -> None:
    """A journal with a history: in large batches, or in these."""
    async with CachedSession(session_id, journal=path, options=MADE) as session:
        wanted: Iterable[Sequence[Any]] = batches or chunks(items)
        for batch in wanted:
            await session.add_items(batch)
    await asyncio.to_thread(index, path)


def index(path: Path) -> None:
    """Index now what the writing thread would index while it is idle, a little at a time: the calls
    that are measured are those of a journal that has come to rest."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        reached = search_index.reach(conn)
        if reached is not None:
            conn.execute("BEGIN IMMEDIATE")
            search_index.catch_up(conn, reached)
            conn.execute("COMMIT")
