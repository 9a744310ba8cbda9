"""Journals for measurements: written quickly, with an up-to-date search index."""

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
"""Options for writing a journal without waiting for the disk."""


async def make(
    path: Path, session_id: str, items: Sequence[Item], batches: Iterable[Sequence[Any]] = ()
) -> None:
    """Write a journal with a history, in the given batches or in large ones."""
    async with CachedSession(session_id, journal=path, options=MADE) as session:
        wanted: Iterable[Sequence[Any]] = batches or chunks(items)
        for batch in wanted:
            await session.add_items(batch)
    await asyncio.to_thread(index, path)


def index(path: Path) -> None:
    """Index the items that the writer thread would index while it is idle.

    The measured calls then run without indexing in the background.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        reached = search_index.reach(conn)
        if reached is not None:
            conn.execute("BEGIN IMMEDIATE")
            search_index.catch_up(conn, reached)
            conn.execute("COMMIT")
