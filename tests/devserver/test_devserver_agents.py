from __future__ import annotations

import dakera
import httpx
import pytest
from dakera import AsyncDakeraClient
from dakera.models import (
    BatchRecallRequest,
    BatchStoreMemoryItem,
    BatchStoreMemoryRequest,
    MemoryPolicy,
)

from cached_session.devserver import DevServer

NAMESPACE = "_dakera_agent_ada"


async def store(client: AsyncDakeraClient, *ids: str, **fields: object) -> None:
    items = [BatchStoreMemoryItem("some text", id=memory_id, **fields) for memory_id in ids]
    await client.store_memories_batch(BatchStoreMemoryRequest("ada", items))


async def test_health_names_the_version(client: AsyncDakeraClient) -> None:
    """Health, readiness and liveness answer with the version."""
    assert (await client.health())["version"] == "0.12.3"
    assert (await client.health_ready())["ready"] is True
    assert (await client.health_live())["uptime_seconds"] >= 0
    assert await client.is_ready()


async def test_capabilities_hold_the_naming_rules(client: AsyncDakeraClient) -> None:
    """The capabilities document has the version and the rules for names."""
    found = await client.capabilities()
    assert (found.server_version, found.capabilities_version) == ("0.12.3", 2)
    assert found.raw["naming"]["agent_id_pattern"] == r"^[a-zA-Z0-9][a-zA-Z0-9_\-.]*$"
    assert found.raw["naming"]["session_id_max_bytes"] == 256


async def test_agent_is_created_once(client: AsyncDakeraClient) -> None:
    """Creating an agent says whether it was new, and a store creates it as well."""
    assert (await client.create_agent("ada")).created is True
    assert (await client.create_agent("ada")).created is False
    await client.store_memory("bob", "x")
    assert (await client.create_agent("bob")).created is False
    assert [agent["agent_id"] for agent in await client.list_agents()] == ["ada", "bob"]


async def test_listing_is_newest_first(client: AsyncDakeraClient, server: DevServer) -> None:
    """The listing goes from the newest second to the oldest, page by page."""
    for number in range(5):
        await store(client, f"m{number}")
        server.clock.advance(1)
    pages = [await client.agent_memories("ada", limit=2, offset=offset) for offset in (0, 2, 4)]
    ids = [[memory["id"] for memory in page] for page in pages]
    assert ids == [["m4", "m3"], ["m2", "m1"], ["m0"]]
    assert await client.agent_memories("ada", offset=5) == []


async def test_order_within_a_second_depends_on_the_seed_alone(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """Memories of one second are listed in an order that is not theirs, but repeats."""
    ids = [f"m{number}" for number in range(20)]
    await store(client, *ids)
    first = [memory["id"] for memory in await client.agent_memories("ada")]
    assert first not in (ids, ids[::-1])
    server.reset()
    await store(client, *ids[::-1])
    assert [memory["id"] for memory in await client.agent_memories("ada")] == first


async def test_listing_limits_and_previews(client: AsyncDakeraClient) -> None:
    """A listing has 50 memories unless told, and a preview says that it is one."""
    await store(client, *(f"m{number}" for number in range(60)))
    assert len(await client.agent_memories("ada")) == 50
    assert len(await client.agent_memories("ada", limit=5000)) == 60
    preview = (await client.agent_memories("ada", limit=1, content_preview_chars=4))[0]
    assert (preview["content"], preview["content_len"]) == ("some", 9)
    assert preview["content_truncated"] is True


async def test_stats_count_memories_by_type(client: AsyncDakeraClient) -> None:
    """The statistics count memories, types and sessions."""
    await store(client, "a", memory_type="procedural")
    await store(client, "b")
    await client.start_session("ada")
    stats = await client.agent_stats("ada")
    assert stats["total_memories"] == 2
    assert stats["memories_by_type"] == {"procedural": 1, "episodic": 1}
    assert stats["active_sessions"] == 1


async def test_unknown_agent_reads_as_empty(client: AsyncDakeraClient) -> None:
    """Listing, statistics and filters of an agent that never stored are empty."""
    assert await client.agent_memories("nobody") == []
    assert (await client.agent_stats("nobody"))["total_memories"] == 0
    assert (await client.batch_recall(BatchRecallRequest("nobody"))).filtered == 0


async def test_policy_has_defaults_until_it_is_put(client: AsyncDakeraClient) -> None:
    """A namespace answers the default policy until one is put, which needs the namespace."""
    policy = await client.get_memory_policy(NAMESPACE)
    assert policy.episodic_ttl_seconds == 2_592_000
    with pytest.raises(dakera.NotFoundError):
        await client.set_memory_policy(NAMESPACE, policy)
    await client.create_agent("ada")
    changed = await client.set_memory_policy(NAMESPACE, MemoryPolicy(episodic_ttl_seconds=99))
    assert changed.episodic_ttl_seconds == 99
    assert (await client.get_memory_policy(NAMESPACE)).episodic_ttl_seconds == 99


async def test_policy_put_replaces_everything(http: httpx.AsyncClient) -> None:
    """A policy that leaves a field out falls back to its default."""
    await http.post("/v1/agents", json={"agent_id": "ada"})
    path = f"/v1/namespaces/{NAMESPACE}/memory_policy"
    await http.put(path, json={"episodic_ttl_seconds": 99, "dedup_on_store": True})
    answer = (await http.put(path, json={"working_ttl_seconds": None})).json()
    assert answer["episodic_ttl_seconds"] == 2_592_000
    assert answer["working_ttl_seconds"] is None
    assert answer["dedup_on_store"] is False


async def test_deleting_a_namespace_deletes_the_agent(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """Deleting an agent's namespace takes its memories, and a second delete is a 404."""
    await store(client, "a")
    assert [space.name for space in await client.list_namespaces()] == [NAMESPACE]
    await client.delete_namespace(NAMESPACE)
    assert server.agents() == []
    with pytest.raises(dakera.NotFoundError) as failure:
        await client.delete_namespace(NAMESPACE)
    assert failure.value.resource == "namespace"


async def test_data_namespaces_need_a_dimension_and_a_free_name(
    client: AsyncDakeraClient, http: httpx.AsyncClient
) -> None:
    """A data namespace needs a dimension, and may not look like an agent's."""
    await client.create_namespace("data", dimensions=8)
    assert (await client.get_namespace("data")).dimensions == 8
    assert (await http.post("/v1/namespaces", json={"name": "other"})).status_code == 422
    with pytest.raises(dakera.ValidationError):
        await client.create_namespace(NAMESPACE, dimensions=8)


async def test_session_life(client: AsyncDakeraClient, server: DevServer) -> None:
    """A session starts, counts what it holds, is touched, ends, and stays ended."""
    session = await client.start_session("ada", metadata={"k": 1})
    assert (await client.get_session(session["id"]))["metadata"] == {"k": 1}
    stored = await client.store_memory("ada", "x", session_id=session["id"])
    assert stored["session_state"] == "active"
    assert len(await client.session_memories(session["id"])) == 1
    assert (await client.touch_session(session["id"])).session_state == "active"
    ended = await client.end_session(session["id"], summary="done")
    assert ended["session"]["ended_reason"] == "client"
    assert (await client.touch_session(session["id"])).session_state == "ended"
    items = [BatchStoreMemoryItem("late", session_id=session["id"])]
    answer = await client.store_memories_batch(BatchStoreMemoryRequest("ada", items))
    assert answer.ended_sessions == [session["id"]]


async def test_free_form_session_ids_are_only_a_filter(client: AsyncDakeraClient) -> None:
    """A session id that was never started can be stored under, and lists as 404."""
    stored = await client.store_memory("ada", "x", session_id="urn:chat:42")
    assert "session_state" not in stored
    with pytest.raises(dakera.NotFoundError):
        await client.session_memories("urn:chat:42")


async def test_sessions_are_listed_in_an_envelope(client: AsyncDakeraClient) -> None:
    """Sessions are listed newest first with their total, open ones alone on demand."""
    first, second = [await client.start_session("ada") for _ in range(2)]
    await client.end_session(first["id"])
    listed = await client.list_sessions("ada")
    assert [session["id"] for session in listed["sessions"]] == [second["id"], first["id"]]
    assert (await client.list_sessions("ada", active_only=True))["total"] == 1


async def test_unknown_routes_and_methods_are_json_errors(http: httpx.AsyncClient) -> None:
    """A path or method that does not exist is answered with the error body."""
    nowhere = await http.get("/v1/nowhere")
    assert (nowhere.status_code, nowhere.json()["code"]) == (404, "ROUTE_NOT_FOUND")
    wrong = await http.patch("/v1/memory/store")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "METHOD_NOT_ALLOWED")
