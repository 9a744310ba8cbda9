"""One suite for the devserver, the simulation's server and, where one is configured, a real Dakera:
`make contract URL=http://localhost:3000 KEY=...`. It tests the behaviour on which replication
depends. Answers that may differ between servers are printed instead (`-s` shows them)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cached_session import CachedSession
from cached_session.history.ids import agent_id, session_key
from cached_session.history.ops import Dot, Kind, Operation
from cached_session.remote.errors import RemoteError
from cached_session.remote.ids import version_of
from cached_session.remote.protocol import EventSource, Remote
from cached_session.remote.wire import EncodedMemory, claim_note, claim_tag, decode, memories_of
from tests.contract.servers import KEY, SERVERS, URL, Simulated

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds that a cluster may take to show a write on another node."""
WRITER = "contract22"


@pytest.fixture(params=list(SERVERS))
async def remote(request: pytest.FixtureRequest) -> AsyncIterator[Remote]:
    async with SERVERS[request.param]() as connected:
        yield connected


@pytest.fixture
async def session_id(remote: Remote) -> AsyncIterator[str]:
    """Return an unused session id, and delete its memories afterwards."""
    name = f"contract/{secrets.token_hex(6)}"
    yield name
    while listed := await remote.list_memories(agent_id(name), offset=0, limit=1000):
        await remote.forget(agent_id(name), [memory["id"] for memory in listed])
        if URL is None:
            break
        await asyncio.sleep(0.5)


def operation(counter: int, *payloads: str, writer: str = WRITER) -> Operation:
    said_ms = int(time.time() * 1000)
    return Operation(Dot(writer, counter), Kind.APPEND, said_ms << 16, said_ms, payloads)


def memories(session_id: str, *operations: Operation) -> list[dict[str, Any]]:
    key = session_key(session_id)
    return [memory for op in operations for memory in memories_of(op, op.digest(key), session_id)]


async def store(remote: Remote, agent: str, memories: Iterable[dict[str, Any]]) -> set[str]:
    """Store memories in one request, and return the ids that the server reports."""
    return await remote.store(agent, [EncodedMemory.of(memory) for memory in memories])


async def wait_for(ask: Callable[[], Awaitable[T]], holds: Callable[[T], bool]) -> T:
    """Return the first answer that satisfies the condition, or the last one after the timeout."""
    until = time.monotonic() + PATIENCE
    while True:
        answer = await ask()
        if holds(answer) or time.monotonic() > until:
            return answer
        await asyncio.sleep(0.2)


async def test_a_stored_memory_is_read_back_unchanged(remote: Remote, session_id: str) -> None:
    """A payload with every kind of character comes back by id as it was sent, byte for byte."""
    agent = agent_id(session_id)
    text = '{"role":"user","content":"a\\u0000b \\ud83d\\ude00 naïve 漢字 \\n\\t end "}'
    op = operation(1, text, '{"n":12345678901234567890,"f":1.10,"big":"' + "x" * 50_000 + '"}')
    sent = memories(session_id, op)
    assert await store(remote, agent, sent) == {memory["id"] for memory in sent}
    for memory in sent:
        name = memory["id"]
        found = await wait_for(lambda name=name: remote.fetch(agent, name), bool)  # type: ignore[misc]
        assert found is not None
        wanted = decode(memory, session_key(session_id))
        assert decode(found, session_key(session_id)) == wanted


async def test_a_repeated_store_changes_nothing(remote: Remote, session_id: str) -> None:
    """The same batch sent again is acknowledged or refused, and is listed once."""
    agent = agent_id(session_id)
    sent = memories(session_id, *(operation(counter, '{"a":1}') for counter in range(1, 6)))
    ids = {memory["id"] for memory in sent}
    await store(remote, agent, sent)
    try:
        assert await store(remote, agent, sent) == ids
        print("an id that exists: taken again")
    except RemoteError as error:
        # Allowed: after a refusal the client looks the memory up by its id.
        if error.status not in (400, 409):
            raise
        print("an id that exists: refused")

    async def listed() -> list[str]:
        rows = await remote.list_memories(agent, offset=0, limit=1000)
        # Derived sentences of a memory may be listed beside it, under ids that are not ours.
        return sorted(row["id"] for row in rows if version_of(row["id"]) is not None)

    assert await wait_for(listed, lambda rows: len(rows) >= len(ids)) == sorted(ids)


async def test_pages_show_every_memory(remote: Remote, session_id: str) -> None:
    """Pages of 100 over 250 memories show each of them, and an empty one is the end."""
    agent = agent_id(session_id)
    sent = memories(session_id, *(operation(counter, '{"a":1}') for counter in range(1, 251)))
    await store(remote, agent, sent)

    async def listing() -> set[str]:
        found: set[str] = set()
        offset = 0
        while page := await remote.list_memories(agent, offset=offset, limit=100):
            assert len(page) <= 100
            found |= {memory["id"] for memory in page if version_of(memory["id"]) is not None}
            offset += len(page)
        return found

    found: set[str] = set()

    async def more() -> set[str]:
        # Ties in `created_at` may be shuffled in each page, so only the union counts.
        found.update(await listing())
        return found

    assert await wait_for(more, lambda ids: len(ids) == 250) == {m["id"] for m in sent}


async def test_an_unknown_agent_has_no_memories(remote: Remote, session_id: str) -> None:
    """An agent that never stored lists nothing, returns nothing by id, and deletes nothing."""
    agent = agent_id(session_id)
    assert await remote.list_memories(agent, offset=0, limit=10) == []
    assert await remote.find_by_tag(agent, "cached-session") == []
    unknown = memories(session_id, operation(1, "{}"))[0]["id"]
    assert await remote.fetch(agent, unknown) is None
    assert await remote.forget(agent, [unknown]) == 0


async def test_a_delete_counts_once(remote: Remote, session_id: str) -> None:
    """Of two successive deletes of one id the first returns 1 and the second 0, and the memory is
    gone."""
    agent = agent_id(session_id)
    (memory,) = memories(session_id, operation(1, '{"a":1}'))
    await store(remote, agent, [memory])
    await wait_for(lambda: remote.fetch(agent, memory["id"]), bool)
    assert await remote.forget(agent, [memory["id"]]) == 1
    assert await remote.forget(agent, [memory["id"]]) == 0
    assert await wait_for(lambda: remote.fetch(agent, memory["id"]), lambda m: m is None) is None
    assert (
        await wait_for(
            lambda: remote.list_memories(agent, offset=0, limit=10), lambda rows: not rows
        )
        == []
    )


async def test_one_of_many_concurrent_deletes_counts(remote: Remote, session_id: str) -> None:
    """Of sixteen concurrent deletes of one memory exactly one returns 1. The confirmed pop depends
    on this, and Dakera does not document it."""
    agent = agent_id(session_id)
    rounds = 20
    for counter in range(1, rounds + 1):
        (memory,) = memories(session_id, operation(counter, '{"a":1}'))
        await store(remote, agent, [memory])
        await wait_for(lambda memory=memory: remote.fetch(agent, memory["id"]), bool)  # type: ignore[misc]
        counts = await asyncio.gather(*(remote.forget(agent, [memory["id"]]) for _ in range(16)))
        assert sorted(counts) == [0] * 15 + [1], (
            f"{sum(counts)} winners in round {counter}: do not use pop='confirmed' on this server"
        )


async def test_a_note_is_found_by_its_tag(remote: Remote, session_id: str) -> None:
    """All notes of one claim, and no others, are found by the claim's tag."""
    agent, dot = agent_id(session_id), Dot(WRITER, 1)
    notes = [
        claim_note(session_id, dot, 0, claimer, 1_700_000_000_000) for claimer in ("aaaa", "bbbb")
    ]
    other = claim_note(session_id, dot, 1, "aaaa", 1_700_000_000_000)
    await store(remote, agent, [*notes, other])
    found = await wait_for(
        lambda: remote.find_by_tag(agent, claim_tag(dot, 0)), lambda rows: len(rows) == 2
    )
    assert {memory["id"] for memory in found} == {note["id"] for note in notes}


async def test_the_guard_succeeds_twice(remote: Remote, session_id: str) -> None:
    """The retention guard succeeds before anything is stored, and again afterwards."""
    agent = agent_id(session_id)
    report = await remote.guard(agent)
    print("guard:", report.unguarded or "the policy keeps the history")
    await store(remote, agent, memories(session_id, operation(1, '{"a":1}')))
    assert await remote.guard(agent) == report


@pytest.mark.parametrize(
    "name", ["a/b?c#d", "günther 👋", "..", "\x00\n", "'; DROP TABLE items", "x" * 5000]
)
async def test_the_server_accepts_every_agent_id(remote: Remote, name: str) -> None:
    """The server accepts the agent id of every session id."""
    unique = f"{name}{secrets.token_hex(6)}"
    agent = agent_id(unique)
    (memory,) = memories(unique, operation(1, '{"a":1}'))
    try:
        assert await store(remote, agent, [memory]) == {memory["id"]}
        assert await wait_for(lambda: remote.fetch(agent, memory["id"]), bool)
    finally:
        await remote.forget(agent, [memory["id"]])


async def test_the_event_stream_announces_a_store(remote: Remote, session_id: str) -> None:
    """A stream of events, where a server has one, names the agent of a stored memory."""
    if not isinstance(remote, EventSource):
        pytest.skip("this server tells nothing: polling finds it")
    agent = agent_id(session_id)
    events = remote.events()
    assert await anext(events) is None
    await store(remote, agent, memories(session_id, operation(1, '{"a":1}')))

    async def told() -> None:
        async for event in events:
            if event is not None and event[0] == agent:
                return

    await asyncio.wait_for(told(), PATIENCE)
    await events.aclose()


async def test_two_devices_share_a_history(remote: Remote, session_id: str, tmp_path: Path) -> None:
    """Items are written on one device, read on another, popped there, and gone on both."""
    if remote.server == Simulated.server:
        pytest.skip("no socket leads to it: tests/simulation has whole devices over it")
    key = KEY if remote.server == URL else None

    def device(name: str) -> CachedSession:
        return CachedSession.from_url(
            session_id, url=remote.server, api_key=key, journal=tmp_path / name
        )

    async with device("a.db") as a, device("b.db") as b:
        await a.add_items([{"role": "user", "content": f"word {n}"} for n in range(300)])
        await a.sync(timeout=60)
        await b.sync(timeout=60)
        assert await b.get_items() == await a.get_items()
        assert await b.pop_item() == {"role": "user", "content": "word 299"}
        await b.sync(timeout=60)
        await a.sync(timeout=60)
        assert len(await a.get_items()) == 299
