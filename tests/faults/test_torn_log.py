"""A power failure during a write of SQLite: the log ends anywhere in its last transaction."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession
from cached_session.journal.tables.sessions import session_row

STRIDE = int(os.environ.get("STRIDE", "97"))
"""Bytes between the tested lengths. It is prime, so that every position in a frame occurs. `make
faults` tests each length."""


def text_message(word: str) -> list[Any]:
    return [{"role": "user", "content": word}]


@pytest.mark.promise(number=1)
async def test_a_torn_last_transaction_damages_no_earlier_one(tmp_path: Path) -> None:
    """Wherever the log ends inside the last transaction, all earlier transactions are complete, the
    last one is absent, and the file is sound."""
    journal, torn = tmp_path / "j.db", tmp_path / "torn.db"
    log = Path(f"{journal}-wal")
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
        await session.add_items(text_message("b"))
        began = log.stat().st_size
        await session.add_items(text_message("c"))
        whole, file = log.read_bytes(), journal.read_bytes()
    assert len(whole) > began
    print(f"{len(whole) - began} bytes of the last transaction, every {STRIDE} of them")
    cuts = [*range(began, len(whole), STRIDE), len(whole) - 1, len(whole)]
    for cut in cuts:
        torn.write_bytes(file)
        Path(f"{torn}-wal").write_bytes(whole[:cut])
        with closing(sqlite3.connect(torn)) as conn:
            counters = [
                row[0] for row in conn.execute("SELECT counter FROM ops WHERE live > 0 ORDER BY 1")
            ]
            ops = conn.execute("SELECT count(*) FROM ops").fetchone()[0]
            row = session_row(conn, "s")
            assert conn.execute("PRAGMA quick_check").fetchone() == ("ok",)
        assert counters == ([1, 2, 3] if cut == len(whole) else [1, 2]), cut
        assert row is not None
        assert ops == row[1] == len(counters), cut
    for cut in (began, len(whole) - 1):
        torn.write_bytes(file)
        Path(f"{torn}-wal").write_bytes(whole[:cut])
        async with CachedSession("s", journal=torn) as session:
            await session.add_items(text_message("d"))
            found: list[Any] = list(await session.get_items())
            assert [item["content"] for item in found] == ["a", "b", "d"]
