from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dakera
import httpx
import pytest
from dakera import AsyncDakeraClient
from dakera.models import BatchRecallRequest, BatchStoreMemoryItem, BatchStoreMemoryRequest

from cached_session.devserver import DevServer, Modes

LONG = "A first sentence that is long enough. A second one, also long. And then the third one."


def batch(memory_id: str, content: str = "text", **fields: object) -> BatchStoreMemoryRequest:
    return BatchStoreMemoryRequest("ada", [BatchStoreMemoryItem(content, id=memory_id, **fields)])


@asynccontextmanager
async def running(
    version: str = "0.12.3", **modes: object
) -> AsyncIterator[tuple[DevServer, AsyncDakeraClient]]:
    with DevServer(version=version, modes=Modes().changed(modes)) as server:
        async with AsyncDakeraClient(server.url, max_retries=1) as client:
            yield server, client


async def test_existing_id_can_be_refused() -> None:
    """In `refuse` a batch with an id that exists is a conflict and stores nothing."""
    async with running(existing_id="refuse") as (server, client):
        await client.store_memories_batch(batch("a"))
        items = [BatchStoreMemoryItem("x", id=i) for i in ("a", "b")]
        with pytest.raises(dakera.ConflictError):
            await client.store_memories_batch(BatchStoreMemoryRequest("ada", items))
        assert [memory["id"] for memory in server.memories("ada")] == ["a"]


async def test_existing_id_can_be_ignored() -> None:
    """In `ignore` an item whose id exists is left out and the old record stays."""
    async with running(existing_id="ignore") as (server, client):
        await client.store_memories_batch(batch("a", "old"))
        assert (await client.store_memories_batch(batch("a", "new"))).stored_count == 0
        assert server.memories("ada")[0]["content"] == "old"


async def test_replaced_record_can_keep_its_time() -> None:
    """In `keep` a replaced record keeps the time of its first store."""
    async with running(created_at_on_replace="keep") as (server, client):
        await client.store_memories_batch(batch("a"))
        created = server.memories("ada")[0]["created_at"]
        server.clock.advance(100)
        await client.store_memories_batch(batch("a"))
        assert server.memories("ada")[0]["created_at"] == created


async def test_metadata_can_be_merged() -> None:
    """In `merge` an update keeps metadata that it does not name."""
    async with running(metadata_update="merge") as (_, client):
        await client.store_memories_batch(batch("a", metadata={"x": 1, "y": 1}))
        updated = await client.update_memory("ada", "a", metadata={"y": 2})
        assert updated["metadata"] == {"x": 1, "y": 2}


async def test_limit_over_the_maximum_can_be_refused() -> None:
    """In `reject` a listing limit over the maximum is a 400."""
    async with running(over_limit="reject") as (_, client):
        with pytest.raises(dakera.ValidationError):
            await client.agent_memories("ada", limit=1001)


async def test_derived_children_can_be_hidden() -> None:
    """Hidden children appear only in the listing that asks for them, and die with the parent."""
    async with running(derived_children="hidden") as (server, client):
        await client.store_memories_batch(batch("a", LONG, tags=["t"]))
        assert [memory["id"] for memory in await client.agent_memories("ada")] == ["a"]
        everything = await client.agent_memories("ada", include_derived=True)
        children = [memory for memory in everything if memory["id"] != "a"]
        assert len(children) == 3
        assert all(memory["id"].startswith("mem_s") for memory in children)
        assert (await client.batch_recall(BatchRecallRequest("ada"))).total == 1
        # Rows are counted, as Dakera says: the memory and its three sentences.
        forget = {"agent_id": "ada", "memory_ids": ["a"]}
        assert await client._request("POST", "/v1/memory/forget", forget) == {"deleted_count": 4}
        assert server.memories("ada", with_children=True) == []


async def test_derived_children_can_leak() -> None:
    """Leaking children are counted and listed with their parent's tags and metadata."""
    async with running(derived_children="leak") as (_, client):
        await client.store_memories_batch(batch("a", LONG, tags=["t"], metadata={"seq": 1}))
        answer = await client.batch_recall(BatchRecallRequest("ada"))
        assert (answer.total, len(answer.memories)) == (4, 4)
        assert all(memory.metadata == {"seq": 1} for memory in answer.memories)
        assert (await client.agent_stats("ada"))["total_memories"] == 4


async def test_dedup_can_be_the_default_policy() -> None:
    """A server may drop near-duplicates where nobody configured anything."""
    async with running(dedup_on_store=True) as (_, client):
        await client.store_memories_batch(batch("a", "ok"))
        assert (await client.store_memories_batch(batch("b", "ok"))).stored_count == 0
        assert (await client.get_memory_policy("_dakera_agent_ada")).dedup_on_store is True


async def test_nul_can_vanish() -> None:
    """A server may strip U+0000 from content."""
    async with running(strips_nul=True) as (server, client):
        await client.store_memories_batch(batch("a", "x\0y"))
        assert server.memories("ada")[0]["content"] == "xy"


async def test_metadata_can_have_a_byte_limit() -> None:
    """A server may refuse metadata over 64 KiB."""
    async with running(metadata_max_bytes=65_536) as (_, client):
        await client.store_memories_batch(batch("a", metadata={"k": "x" * 65_000}))
        with pytest.raises(dakera.ValidationError):
            await client.store_memories_batch(batch("b", metadata={"k": "x" * 65_536}))


async def test_unknown_agents_and_ids_can_be_404() -> None:
    """A server may answer 404 for agents and forgotten ids that do not exist."""
    async with running(unknown_agent="not_found", forget_unknown="not_found") as (_, client):
        with pytest.raises(dakera.NotFoundError) as failure:
            await client.agent_memories("ada")
        assert failure.value.resource == "namespace"
        with pytest.raises(dakera.NotFoundError):
            await client.forget("ada", "x")


async def test_sessions_can_be_a_bare_array() -> None:
    """A server may list sessions without an envelope."""
    async with running(sessions_shape="array") as (_, client):
        await client.start_session("ada")
        assert len(await client.list_sessions("ada")) == 1


async def test_decay_can_spare_the_important() -> None:
    """A server may leave memories above an importance out of decay."""
    async with running(decay_protects_above=0.8) as (server, client):
        far = int(server.clock.now()) + 10**9
        for memory_id, importance in (("a", 0.9), ("b", 0.8)):
            await client.store_memories_batch(
                batch(memory_id, memory_type="working", importance=importance, expires_at=far)
            )
        server.memories("ada")
        server.clock.advance(365 * 86_400)
        assert [memory["id"] for memory in server.memories("ada")] == ["a"]


def test_misspelt_mode_is_refused() -> None:
    """An unknown mode or value raises instead of doing nothing."""
    with pytest.raises(ValueError, match="unknown mode: existing"):
        Modes().changed({"existing": "refuse"})
    with pytest.raises(ValueError, match="existing_id='explode' is not one of"):
        Modes().changed({"existing_id": "explode"})


async def test_version_011_lacks_the_newer_routes() -> None:
    """An 0.11.108 server has no capabilities, agent creation or whoami, and says its version."""
    async with running("0.11.108") as (_, client):
        assert (await client.health())["version"] == "0.11.108"
        for call in (client.capabilities(), client.whoami()):
            with pytest.raises(dakera.NotFoundError):
                await call
        with pytest.raises(dakera.DakeraError) as failure:
            await client.create_agent("ada")
        assert failure.value.status_code == 405


async def test_version_011_reads_differently() -> None:
    """An 0.11.108 server answers 404 for empty agents, ignores offsets and has bare errors."""
    async with running("0.11.108") as (server, client):
        for read in (client.agent_memories("ada"), client.recall("ada", "x")):
            with pytest.raises(dakera.NotFoundError):
                await read
        await client.store_memories_batch(batch("a"))
        assert len(await client.agent_memories("ada", offset=5)) == 1
        with pytest.raises(dakera.ValidationError):
            await client.get_memory(None, "a")
        async with httpx.AsyncClient(base_url=server.url) as http:
            assert (await http.get("/v1/nowhere")).json().keys() == {"error"}


async def test_version_0122_has_no_warnings_yet() -> None:
    """An 0.12.2 server creates agents, ignores unknown fields in silence and refuses colons."""
    async with running("0.12.2") as (server, client):
        assert (await client.create_agent("ada")).created
        async with httpx.AsyncClient(base_url=server.url) as http:
            body = {"agent_id": "ada", "content": "x", "when": 1}
            answer = (await http.post("/v1/memory/store", json=body)).json()
        assert "warnings" not in answer
        with pytest.raises(dakera.ValidationError):
            await client.store_memory("ada", "x", session_id="urn:chat:42")
