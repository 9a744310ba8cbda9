"""A listing that orders the memories of one second differently at each request, as a server may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cached_session import SyncOptions
from cached_session.history.ids import session_key
from cached_session.history.ops import Dot, Kind, Operation
from cached_session.history.session_ref import SessionRef
from cached_session.journal.journal import Journal
from cached_session.journal.tables.outbox import pending_sessions
from cached_session.remote.wire import memories_of
from cached_session.replication.context import Context
from cached_session.replication.pull import pull
from cached_session.runtime import Runtime

SESSION = "shuffled"
WRITERS = 60
"""Writers with one operation each, so that a missing one leaves no gap."""
PAGE = 25


class ShufflingServer:
    """Lists memories of one second, in another order at each request or always in the same."""

    server = "http://shuffling"
    answered = server_second = 0

    def __init__(self, *, shuffles: bool) -> None:
        key = session_key(SESSION)
        self.random = Random(7)
        self.shuffles = shuffles
        self.offsets: list[int] = []
        self.memories: list[dict[str, Any]] = []
        for number in range(WRITERS):
            dot = Dot(f"writer{chr(97 + number // 26)}{chr(97 + number % 26)}", 1)
            op = Operation(dot, Kind.APPEND, 1 + number, 0, (f'"{number}"',))
            self.memories += memories_of(op, op.digest(key), SESSION)

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        self.offsets.append(offset)
        if self.shuffles:
            self.random.shuffle(self.memories)
        return [{**m, "created_at": 7} for m in self.memories[offset : offset + limit]]


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    journal = Journal(tmp_path / "a.db")
    journal.open_blocking()
    yield journal
    journal.close_blocking()


async def hydrated(journal: Journal, remote: ShufflingServer) -> int:
    """Return the number of operations that a first pull brings."""
    options = SyncOptions(page_size=PAGE, first_page_size=PAGE)
    context = Context(journal, remote, options, Runtime(), "me")  # type: ignore[arg-type]
    result = await pull(context, SessionRef.of(SESSION))
    assert result.finished
    assert await journal.read(pending_sessions) == []
    return result.new


async def test_a_first_pull_over_a_shuffled_second_is_complete(journal: Journal) -> None:
    """A writer's last operation that was missed between two pages is found by the same pull, which
    lists everything once more because the pages did not continue each other."""
    assert await hydrated(journal, ShufflingServer(shuffles=True)) == WRITERS


async def test_a_listing_with_a_stable_order_is_read_once(journal: Journal) -> None:
    """Nothing is listed twice when the pages continue each other."""
    remote = ShufflingServer(shuffles=False)
    assert await hydrated(journal, remote) == WRITERS
    assert len(remote.offsets) == len(set(remote.offsets))
