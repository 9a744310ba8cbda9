from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import dakera
import orjson
import pytest
from dakera import AsyncDakeraClient
from dakera.models import BatchStoreMemoryItem, BatchStoreMemoryRequest

from cached_session.devserver import DevServer


class Listener:
    """The raw payloads of one event stream, and when it is connected."""

    def __init__(self, client: AsyncDakeraClient) -> None:
        self._payloads = client._sse_payloads(client._url("/v1/events/stream"))

    async def next(self) -> dict[str, Any]:
        """Wait for the next payload."""
        return dict(orjson.loads(await asyncio.wait_for(anext(self._payloads), 60)))

    async def close(self) -> None:
        """Leave the stream."""
        await self._payloads.aclose()


@pytest.fixture
async def listener(client: AsyncDakeraClient) -> AsyncIterator[Listener]:
    """A stream that has said `connected`."""
    connected = Listener(client)
    assert (await connected.next())["type"] == "connected"
    yield connected
    await connected.close()


def batch(*ids: str) -> BatchStoreMemoryRequest:
    return BatchStoreMemoryRequest("ada", [BatchStoreMemoryItem(i, id=i) for i in ids])


async def test_each_stored_memory_is_an_event(
    client: AsyncDakeraClient, listener: Listener, server: DevServer
) -> None:
    """Each item of a batch is announced with its content, and the time is in milliseconds."""
    await client.store_memories_batch(batch("a", "b"))
    first, second = await listener.next(), await listener.next()
    assert [first["memory_id"], second["memory_id"]] == ["a", "b"]
    assert (first["event_type"], first["agent_id"], first["content"]) == ("stored", "ada", "a")
    assert first["timestamp"] == int(server.clock.now() * 1000)
    assert "metadata" not in first


async def test_official_stream_parses_the_events(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """The official client's stream yields `connected` and then what happens."""
    async with aclosing(client.stream_memory_events()) as stream:
        assert (await anext(stream)).event_type == "connected"
        session = await client.start_session("ada")
        assert (await anext(stream)).event_type == "session_started"
        await client.end_session(session["id"])
        ended = await anext(stream)
        assert (ended.event_type, ended.session_id) == ("session_ended", session["id"])
        await client.store_memories_batch(batch("a"))
        assert (await anext(stream)).memory_id == "a"
        await client.recall("ada", "a")
        assert (await anext(stream)).event_type == "recalled"
        await client.forget("ada", "a")
        assert (await anext(stream)).event_type == "forgotten"


async def test_expiry_and_eviction_are_silent(
    client: AsyncDakeraClient, listener: Listener, server: DevServer
) -> None:
    """What the server loses by itself is not announced."""
    await client.store_memories_batch(batch("a", "b"))
    await listener.next()
    await listener.next()
    server.evict("ada", ["a"])
    server.clock.advance(31 * 86_400)
    assert server.memories("ada") == []
    await client.start_session("ada")
    assert (await listener.next())["event_type"] == "session_started"


async def test_lost_events_are_noticed_or_not(
    client: AsyncDakeraClient, listener: Listener, server: DevServer
) -> None:
    """Lost events are followed by a lag notice, or by nothing when the loss is silent."""
    with server.faults.lose_events(route="EVENT stored"):
        await client.store_memories_batch(batch("a"))
        notice = await listener.next()
    assert (notice["event_type"], notice["dropped"]) == ("stream_lagged", 1)
    server.faults.lose_events(notice=False, count=1)
    await client.store_memories_batch(batch("b", "c"))
    assert (await listener.next())["memory_id"] == "c"


async def test_slow_consumer_loses_events(
    client: AsyncDakeraClient, listener: Listener, server: DevServer
) -> None:
    """A consumer that falls behind its buffer hears how much it missed, then the latest."""
    server.state.events.capacity = 2
    slow = Listener(client)
    await slow.next()
    await client.store_memories_batch(batch(*"abcdefgh"))
    notice, *events = [await slow.next() for _ in range(3)]
    assert (notice["event_type"], notice["dropped"]) == ("stream_lagged", 6)
    assert [event["memory_id"] for event in events] == ["g", "h"]
    await slow.close()


@pytest.mark.parametrize("form", ["vector", "none"])
async def test_lag_notice_has_other_forms(
    client: AsyncDakeraClient, listener: Listener, server: DevServer, form: str
) -> None:
    """The notice can have the form that the official client drops, or not come at all."""
    server.modes = server.modes.changed({"lag_notice": form})
    server.faults.lose_events(count=1)
    await client.store_memories_batch(batch("a", "b"))
    first = await listener.next()
    second = await listener.next() if form == "vector" else None
    events = [event for event in (first, second) if event is not None]
    assert [event["memory_id"] for event in events if "memory_id" in event] == ["b"]
    assert [event["dropped"] for event in events if "dropped" in event] == (
        [1] if form == "vector" else []
    )


async def test_delayed_event_comes_later(
    client: AsyncDakeraClient, listener: Listener, server: DevServer
) -> None:
    """A delayed event arrives after one that happened later."""
    server.faults.delay_events(0.05, count=1)
    await client.store_memories_batch(batch("late", "soon"))
    assert [(await listener.next())["memory_id"] for _ in range(2)] == ["soon", "late"]


async def test_stream_ends_with_the_server(
    client: AsyncDakeraClient, listener: Listener, server: DevServer
) -> None:
    """Disconnecting cuts an open stream, and the server forgets the consumer."""
    server.disconnect()
    with pytest.raises(Exception, match=r".*"):
        await listener.next()
    await client.health()
    for _ in range(6000):
        if not server.state.events.subscribers:
            break
        await asyncio.sleep(0.01)
    assert server.state.events.subscribers == 0


async def test_quiet_stream_is_kept_alive() -> None:
    """A stream without events carries comments, which the decoder skips."""
    with DevServer(keepalive=0.01) as quick:
        async with AsyncDakeraClient(quick.url, max_retries=1) as client:
            url = client._url("/v1/events/stream")
            async with client._client.stream("GET", url) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                seen = b""
                async for chunk in answer.aiter_bytes():
                    seen += chunk
                    if b": keep-alive\n\n" in seen:
                        break
            assert seen.startswith(b"event: connected\ndata: {")


async def test_stream_shows_only_granted_agents(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """A key sees the events of the namespaces it is good for, and none without a valid key."""
    server.add_key("root", "super_admin", name="root")
    server.add_key("narrow", "read", ["_dakera_agent_b*"], name="narrow")
    async with (
        AsyncDakeraClient(server.url, api_key="root", max_retries=1) as root,
        AsyncDakeraClient(server.url, api_key="narrow", max_retries=1) as narrow,
    ):
        listener = Listener(narrow)
        await listener.next()
        await root.store_memory("ada", "hidden")
        await root.store_memory("bob", "shown")
        assert (await listener.next())["content"] == "shown"
        await listener.close()
    async with AsyncDakeraClient(server.url, api_key="wrong", max_retries=1) as stranger:
        with pytest.raises(dakera.AuthenticationError):
            await Listener(stranger).next()
