"""Forged and faulty memories under our names are reported, bounded and survived."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cached_session import SyncOptions
from cached_session.devserver import DevServer
from cached_session.history.clock import LAST_WALL_STAMP, MAX_STAMP
from cached_session.history.ids import session_key
from cached_session.history.ops import Dot, Kind, Operation
from cached_session.history.session_ref import SessionRef
from cached_session.journal.journal import Journal
from cached_session.journal.tables.status_counts import counts_of
from cached_session.remote.ids import memory_id
from cached_session.remote.wire import memories_of
from cached_session.replication.context import Context
from cached_session.replication.gap_search import FETCHES_PER_SEARCH
from cached_session.replication.pull import pull
from cached_session.runtime import Runtime
from tests.replication.devices import AGENT, Devices, sync_all, text_message, texts

SESSION = "talk"
KEY = session_key(SESSION)
WRITER = "a" * 24
YEAR_MS = 365 * 86_400_000
DOT = Dot(WRITER, 1)
HUGE = (1 << 31) - 1


def forged(*words: str, stamp: int = 1 << 40, dot: Dot = DOT) -> list[dict[str, Any]]:
    """Return an operation as a writer of that name would store it."""
    payloads = tuple(f'{{"role":"user","content":"{word}"}}' for word in words)
    op = Operation(dot, Kind.APPEND, stamp, 1000, payloads)
    return list(memories_of(op, op.digest(KEY), SESSION))


def store_memories(server: DevServer, memories: list[dict[str, Any]]) -> None:
    """Store memories as another program would."""
    import httpx

    answer = httpx.post(
        f"{server.url}/v1/memories/store/batch", json={"agent_id": AGENT, "memories": memories}
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "stamp",
    [(int(time.time() * 1000) + 70 * YEAR_MS) << 16, LAST_WALL_STAMP],
    ids=["seventy years", "the last that a clock makes"],
)
async def test_a_stamp_years_ahead_is_reported_and_changes_no_order(
    device: Devices, server: DevServer, stamp: int
) -> None:
    """An operation of a clock far in the future is shown and reported in the status, and every
    answer to it comes after it, on every device."""
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("question")])
    await a.sync()
    assert a.status().clock_ahead is None
    store_memories(server, forged("from the future", stamp=stamp))
    await sync_all(a, b)
    await a.add_items([text_message("answer")])
    await sync_all(a, b)
    await b.add_items([text_message("thanks")])
    await sync_all(b, a)
    expected = ["question", "from the future", "answer", "thanks"]
    for session in (a, b, await device("late")):
        assert texts(await session.get_items()) == expected
        ahead = session.status().clock_ahead
        assert ahead is not None
        assert ahead > 69 * YEAR_MS / 1000


async def test_the_largest_stamp_stops_no_writer(device: Devices, server: DevServer) -> None:
    """Above a forged stamp at the largest integer no stamp is left. Later items are ordered by
    writer, equally on every device, and nothing is lost."""
    store_memories(server, forged("the end of time", stamp=MAX_STAMP))
    a, b = await device("a"), await device("b")
    for number in range(3):
        await a.add_items([text_message(f"a{number}")])
        await b.add_items([text_message(f"b{number}")])
    await sync_all(a, b)
    late = await device("late")
    shown = texts(await a.get_items())
    assert sorted(shown) == sorted(
        ["the end of time", *(f"{w}{n}" for w in "ab" for n in range(3))]
    )
    assert texts(await b.get_items()) == shown
    assert texts(await late.get_items()) == shown


async def test_a_dot_with_two_contents_is_a_conflict_on_every_device(
    device: Devices, server: DevServer
) -> None:
    """Each device keeps the first content that it saw of a dot, counts the conflict once, and
    reports it. A later device, which sees only one, has no conflict."""
    a, b = await device("a"), await device("b")
    store_memories(server, forged("first"))
    await sync_all(a, b)
    store_memories(server, forged("second"))
    late = await device("late")
    for _ in range(3):
        await sync_all(a, b, late)
    assert [s.status().conflicts for s in (a, b, late)] == [1, 1, 0]
    assert texts(await late.get_items()) == ["second"]
    store_memories(server, forged("first"))
    await sync_all(a, b, late)
    for session, first in ((a, "first"), (b, "first"), (late, "second")):
        assert texts(await session.get_items()) == [first]
        assert session.status().conflicts == 1
        await session.add_items([text_message("on")])
        await session.sync()


async def test_an_own_dot_with_foreign_content_is_a_conflict(
    device: Devices, server: DevServer
) -> None:
    """The writer of an operation detects that the server holds another content under its dot, and
    shows what it wrote."""
    a = await device("a")
    await a.add_items([text_message("mine")])
    await a.sync()
    (entry,) = await a.entries()
    store_memories(server, forged("not mine", dot=Dot(entry.writer, entry.counter)))
    await sync_all(a)
    assert texts(await a.get_items()) == ["mine"]
    assert a.status().conflicts == 1


class EndlessServer:
    """A server that returns every part that is requested."""

    server = "http://endless:3000"
    answered = server_second = 0

    def __init__(self, field: str) -> None:
        self.field = field
        self.fetched = 0
        (self.first,) = forged("x")
        (self.good,) = forged("good", stamp=1 << 41, dot=Dot("b" * 24, 1))
        self.first["metadata"] |= {"cs_n" if field == "cs_i" else "cs_p": HUGE}

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        self.answered += 1
        return [self.good, self.first] if not offset else []

    async def fetch(self, agent: str, memory: str) -> dict[str, Any] | None:
        self.fetched += 1
        index, _, part = memory.split("-", 4)[4].partition("-")
        metadata = {**self.first["metadata"], "cs_i": int(index), "cs_j": int(part or 0)}
        assert memory == memory_id(KEY, DOT, int(index), int(part or 0))
        return {**self.first, "id": memory, "metadata": metadata}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    found = Journal(tmp_path / "a.db")
    found.open_blocking()
    yield found
    found.close_blocking()


@pytest.mark.parametrize("field", ["cs_i", "cs_j"], ids=["items", "parts"])
async def test_a_forged_number_of_parts_is_bounded(journal: Journal, field: str) -> None:
    """Of an operation that claims two thousand million items or parts, one pull fetches a limited
    number, even from a server that has all. The memories beside it are shown, and it is counted as
    incomplete."""
    remote = EndlessServer(field)
    context = Context(journal, remote, SyncOptions(), Runtime(), "me")  # type: ignore[arg-type]
    for _ in range(2):
        remote.fetched = 0
        await pull(context, SessionRef.of(SESSION))
        assert remote.fetched == FETCHES_PER_SEARCH
    found = await journal.read(lambda conn: counts_of(conn, 1, 0, 0))
    assert (found.items, found.incomplete) == (1, 1)


@pytest.mark.parametrize("last", [2, 7, (1 << 53) - 1])
async def test_a_clear_of_future_operations_hides_none_of_them(
    device: Devices, server: DevServer, last: int
) -> None:
    """A peer's clear names counters that a device has not used yet. The device continues under
    another writer id, so every device shows what it writes afterwards."""
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("before")])
    await a.sync()
    writer = (await a.entries())[0].writer
    payload = f'{{"{writer}":[[2,{last}]]}}'
    clear = Operation(Dot("f" * 24, 1), Kind.CLEAR, 1 << 40, 1000, (payload,))
    store_memories(server, list(memories_of(clear, clear.digest(KEY), SESSION)))
    await sync_all(a, b)
    for number in range(3):
        await a.add_items([text_message(f"{number}")])
        await sync_all(a, b)
    late = await device("late")
    for session in (a, b, late):
        assert texts(await session.get_items()) == ["before", "0", "1", "2"]
    assert len({entry.writer for entry in await a.entries()}) == 2
    assert a.status().salvaged is None
