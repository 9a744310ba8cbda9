"""A session survives a failure of the Nth SQL statement, for every N until a run passes without a
fault."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession, JournalError, SyncOptions
from cached_session.journal.sqlite.tracked_connection import TrackedConnection
from tests.faults.workload import Work, text_message, words

OPTIONS = SyncOptions(durability="normal", busy_timeout=0.1)
STRIDE = int(os.environ.get("STRIDE", "5"))
"""Steps between the tested statements, with another start for each kind of failure. `make faults`
tests each."""


class Fault:
    """A failure of the Nth statement over all connections, before or after it took effect, once or
    permanently."""

    def __init__(self) -> None:
        self.left, self.for_good, self.late = 0, False, False
        self.only = ""
        self.hit: str | None = None

    def set(self, nth: int, *, for_good: bool, late: bool, only: str = "") -> None:
        self.left, self.for_good, self.late, self.hit = nth, for_good, late, None
        self.only = only

    def heal(self) -> None:
        self.left, self.for_good = 0, False

    def passing(self, sql: str, run: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        if not sql.startswith(self.only):
            return run()
        self.left -= 1
        if self.left == 0:
            self.hit = sql
            if self.late:
                run()
        elif not (self.for_good and self.hit):
            return run()
        raise sqlite3.OperationalError("disk I/O error")


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    """Let every new connection pass its statements through the fault."""
    fault = Fault()

    class Faulty(TrackedConnection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            run = super().execute
            return fault.passing(sql, lambda: run(sql, *arguments))

        def executemany(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            run = super().executemany
            return fault.passing(sql, lambda: run(sql, *arguments))

    connect: Any = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **more: connect(*args, **{**more, "factory": Faulty})
    )
    return fault


@pytest.mark.promise(number=1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("for_good", "late"),
    [(False, False), (True, False), (False, True)],
    ids=["once", "for good", "once, after its effect"],
)
async def test_a_failed_statement_loses_nothing_acknowledged(
    tmp_path: Path, fault: Fault, for_good: bool, late: bool
) -> None:
    """Each call (adds, pops, clears, reads, searches, pages of other devices, compactions) succeeds
    completely or raises a JournalError without an effect. Once the fault is gone the same session
    works, and the file is sound. Only a commit that took effect and then reported an error may have
    had its effect, and then once."""
    failures = runs = 0
    for nth in count(1 + (for_good + 2 * late) % STRIDE, STRIDE):
        journal = tmp_path / f"{nth}.db"
        session = CachedSession("s", journal=journal, options=OPTIONS)
        work = Work(session, is_unsure=lambda: late and fault.hit == "COMMIT")
        fault.set(nth, for_good=for_good, late=late)
        try:
            await work.everything()
        finally:
            fault.heal()
        await work.check_after_fault()
        await session.close()
        async with CachedSession("s", journal=journal, options=OPTIONS) as again:
            assert [await words(again)] == work.possible, nth
        with closing(sqlite3.connect(journal)) as conn:
            assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",), nth
        journal.unlink()
        failed = sum(work.failed.values())
        failures += failed
        runs += 1
        if fault.hit is None:
            assert failed == 0
            break
    print(f"{runs} runs up to statement {nth}, {failures} calls failed")
    assert nth > 250
    assert failures > runs // 2


@pytest.mark.parametrize("late", [False, True], ids=["before its effect", "after its effect"])
async def test_calls_in_a_shared_commit_take_effect_at_most_once(
    tmp_path: Path, fault: Fault, late: bool
) -> None:
    """When a commit fails under ten concurrent adds, everything acknowledged is stored and nothing
    is stored twice."""
    for nth in count(1):
        async with CachedSession("s", journal=tmp_path / f"{nth}.db", options=OPTIONS) as session:
            await session.add_items(text_message("first"))
            fault.set(nth, for_good=False, late=late, only="COMMIT")
            asked = [str(number) for number in range(10)]
            answers = await asyncio.gather(
                *(session.add_items(text_message(word)) for word in asked), return_exceptions=True
            )
            fault.heal()
            assert all(answer is None or isinstance(answer, JournalError) for answer in answers)
            found = await words(session)
            kept = [word for word, answer in zip(asked, answers, strict=True) if answer is None]
            assert len(found) == len(set(found)), nth
            assert set(kept) <= set(found) <= {"first", *asked}, nth
            if not late:
                assert found == ["first", *kept], nth
            if fault.hit is None:
                break
    assert nth > 1
