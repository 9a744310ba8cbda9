"""As SQLite tests itself: the Nth SQL statement fails, for every N until a run passes clean."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession, JournalError, SyncOptions

OPTIONS = SyncOptions(durability="normal", busy_timeout=0.1)


class Fault:
    """Fails the Nth statement of every connection together; for good: all after it as well."""

    def __init__(self) -> None:
        self.left, self.for_good, self.hit = 0, False, False

    def set(self, nth: int, for_good: bool) -> None:
        self.left, self.for_good, self.hit = nth, for_good, False

    def heal(self) -> None:
        self.left, self.for_good = 0, False

    def passing(self) -> None:
        if self.left > 0:
            self.left -= 1
            if self.left == 0:
                self.hit = True
                raise sqlite3.OperationalError("disk I/O error")
        elif self.for_good and self.hit:
            raise sqlite3.OperationalError("disk I/O error")


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    """Every connection that is opened passes its statements by the fault."""
    fault = Fault()

    class Faulty(sqlite3.Connection):
        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            fault.passing()
            return super().execute(*arguments)

        def executemany(self, *arguments: Any) -> sqlite3.Cursor:
            fault.passing()
            return super().executemany(*arguments)

    connect: Any = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **more: connect(*args, factory=Faulty, **more)
    )
    return fault


def said(*words: str) -> list[Any]:
    return [{"role": "user", "content": word} for word in words]


async def words(session: CachedSession) -> list[str]:
    return [str(item["content"]) for item in await session.get_items()]  # type: ignore[index,typeddict-item]


async def work(session: CachedSession) -> tuple[list[str], int]:
    """Add, pop, read and clear: what the calls that returned have left, and how many raised."""
    state: list[str] = []
    failed = 0

    async def pop() -> None:
        item: Any = await session.pop_item()
        assert (item and item["content"]) == (state[-1] if state else None)

    async def read() -> None:
        assert await words(session) == state

    calls: list[tuple[Callable[[], Awaitable[None]], Callable[[], list[str]]]] = [
        (lambda: session.add_items(said("a", "b")), lambda: [*state, "a", "b"]),
        (pop, lambda: state[:-1]),
        (read, lambda: state),
        (session.clear_session, list),
        (lambda: session.add_items(said("c", "d", "e")), lambda: [*state, "c", "d", "e"]),
        (pop, lambda: state[:-1]),
        (read, lambda: state),
    ]
    for call, after in calls:
        try:
            await call()
        except JournalError:
            failed += 1
        else:
            state = after()
    return state, failed


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
async def test_whichever_statement_fails_nothing_acknowledged_is_lost(
    tmp_path: Path, fault: Fault, for_good: bool
) -> None:
    """Each call succeeds whole or is a JournalError that leaves nothing; once the cause is gone
    the same session goes on, and the file is sound."""
    failures = 0
    for nth in count(1):
        journal = tmp_path / f"{nth}.db"
        session = CachedSession("s", journal=journal, options=OPTIONS)
        fault.set(nth, for_good)
        try:
            state, failed = await work(session)
        finally:
            fault.heal()
        failures += failed
        assert await words(session) == state, nth
        await session.add_items(said("after"))
        await session.close()
        async with CachedSession("s", journal=journal, options=OPTIONS) as again:
            assert await words(again) == [*state, "after"], nth
        with closing(sqlite3.connect(journal)) as conn:
            assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",), nth
        if not fault.hit:
            assert failed == 0
            break
    assert nth > 50
    assert failures > 30
