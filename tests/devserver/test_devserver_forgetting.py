from __future__ import annotations

import httpx
import pytest
from dakera import AsyncDakeraClient
from dakera.models import BatchStoreMemoryItem, BatchStoreMemoryRequest, MemoryPolicy

from cached_session.devserver import DevServer

DAY = 86_400
NAMESPACE = "_dakera_agent_ada"


def ids(server: DevServer) -> set[str]:
    return {memory["id"] for memory in server.memories("ada")}


async def store(client: AsyncDakeraClient, memory_id: str, **fields: object) -> None:
    content = str(fields.pop("content", f"text of {memory_id}"))
    item = BatchStoreMemoryItem(content, id=memory_id, **fields)
    await client.store_memories_batch(BatchStoreMemoryRequest("ada", [item]))


@pytest.mark.parametrize(
    ("memory_type", "lifetime"),
    [("working", 14_400), ("episodic", 30 * DAY), ("semantic", 365 * DAY)],
)
async def test_each_type_has_its_lifetime(
    client: AsyncDakeraClient, server: DevServer, memory_type: str, lifetime: int
) -> None:
    """Without an expiry of its own a memory lives exactly as long as its type's policy says."""
    await store(client, "m", memory_type=memory_type, importance=1.0)
    await client.set_memory_policy(NAMESPACE, flat_policy())
    server.clock.advance(lifetime - 1)
    assert ids(server) == {"m"}
    server.clock.advance(1)
    assert ids(server) == set()
    assert await client.agent_memories("ada") == []


def flat_policy(**changes: object) -> MemoryPolicy:
    decay = {f"{kind}_decay": "flat" for kind in ("working", "episodic", "semantic")}
    return MemoryPolicy(**{**decay, **changes})


async def test_policy_lifetime_applies_to_what_is_stored_after_it(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """A raised lifetime protects later memories and does not rescue earlier ones."""
    await store(client, "before")
    await client.set_memory_policy(NAMESPACE, flat_policy(episodic_ttl_seconds=9999 * DAY))
    await store(client, "after")
    server.clock.advance(31 * DAY)
    assert ids(server) == {"after"}


async def test_own_expiry_wins(client: AsyncDakeraClient, server: DevServer) -> None:
    """A TTL or an expiry on the item beats the policy, and `expires_at` beats the TTL."""
    now = int(server.clock.now())
    await store(client, "short", ttl_seconds=60)
    await store(client, "long", ttl_seconds=60, expires_at=now + 90 * DAY)
    await client.set_memory_policy(NAMESPACE, flat_policy())
    server.clock.advance(61)
    assert ids(server) == {"long"}
    server.clock.advance(60 * DAY)
    assert ids(server) == {"long"}
    server.clock.advance(30 * DAY)
    assert ids(server) == set()


async def test_replacing_without_expiry_loses_the_expiry(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """A replaced record has the expiry of its last write, not of its first."""
    await store(client, "m", ttl_seconds=9999 * DAY)
    await store(client, "m")
    await client.set_memory_policy(NAMESPACE, flat_policy())
    server.clock.advance(31 * DAY)
    assert ids(server) == set()


async def test_decay_deletes_what_falls_under_the_minimum(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """Importance halves with each half-life until the decay cycle deletes the memory."""
    far = int(server.clock.now()) + 9999 * DAY
    await store(client, "fades", memory_type="working", importance=1.0, expires_at=far)
    await store(client, "stays", memory_type="procedural", importance=0.1, expires_at=far)
    server.memories("ada")
    server.clock.advance(7 * DAY)
    importance = {memory["id"]: memory["importance"] for memory in server.memories("ada")}
    # Rounded to the millionth, and the clock does not start on a whole second.
    assert importance == {"fades": pytest.approx(0.5, rel=1e-4), "stays": 0.1}
    server.clock.advance(28 * DAY)
    assert ids(server) == {"stays"}


async def test_decay_engine_can_be_configured(client: AsyncDakeraClient, server: DevServer) -> None:
    """The engine's minimum can be lowered to nothing, and then nothing decays away."""
    await client.decay_update_config(min_importance=0.0)
    assert (await client.decay_config())["min_importance"] == 0.0
    far = int(server.clock.now()) + 9999 * DAY
    await store(client, "m", expires_at=far)
    server.memories("ada")
    server.clock.advance(3650 * DAY)
    assert ids(server) == {"m"}
    assert (await client.decay_stats())["total_decayed"] == 0


async def test_recall_prolongs_a_policy_lifetime(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """Each recall adds the repetition interval, unless the expiry is explicit."""
    await store(client, "policy")
    await store(client, "own", ttl_seconds=30 * DAY)
    await client.set_memory_policy(NAMESPACE, flat_policy())
    assert len((await client.recall("ada", "text")).memories) == 2
    server.clock.advance(30 * DAY)
    assert ids(server) == {"policy"}
    server.clock.advance(DAY)
    assert ids(server) == set()


async def test_dedup_on_store_drops_near_duplicates(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """With dedup on store, a second "ok" vanishes from the batch, and a store answers the first."""
    await client.create_agent("ada")
    await client.set_memory_policy(NAMESPACE, MemoryPolicy(dedup_on_store=True))
    items = [BatchStoreMemoryItem("ok", id="first"), BatchStoreMemoryItem("OK!", id="second")]
    answer = await client.store_memories_batch(BatchStoreMemoryRequest("ada", items))
    assert [memory.id for memory in answer.stored] == ["first"]
    assert answer.stored_count == 1
    assert (await client.store_memory("ada", "ok"))["id"] == "first"
    assert ids(server) == {"first"}


async def test_consolidation_merges_when_the_policy_asks(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """A namespace with consolidation loses near-duplicates once its interval has passed."""
    await store(client, "first", content="the same words")
    server.clock.advance(1)
    await store(client, "second", content="The same words.")
    await client.set_memory_policy(NAMESPACE, flat_policy(consolidation_enabled=True))
    server.memories("ada")
    server.clock.advance(DAY)
    assert ids(server) == {"first"}
    assert (await client.get_memory_policy(NAMESPACE)).consolidated_count == 1


async def test_autopilot_folds_and_the_trash_gives_back(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """Merged duplicates are listed, restorable once, and a conflict when the id exists again."""
    await store(client, "first", content="the same words")
    server.clock.advance(1)
    await store(client, "second", content="the same words")
    await client.autopilot_update_config(dedup_mode="merge")
    await client.agent_memories("ada")
    server.clock.advance(6 * 3600)
    listed = await client.list_deduplicated("ada")
    assert [(entry.id, entry.survivor_id) for entry in listed.memories] == [("second", "first")]
    assert (await client.autopilot_status())["total_dedup_removed"] == 1
    assert (await client.restore_deduplicated("ada", "second"))["id"] == "second"
    assert ids(server) == {"first", "second"}


async def test_ended_session_expires_its_duplicates(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """Ending a session gives near-duplicates thirty days, except important ones."""
    session = await client.start_session("ada")
    far = int(server.clock.now()) + 9999 * DAY
    for memory_id, importance in [("a", 0.5), ("b", 0.5), ("c", 0.9)]:
        await store(
            client,
            memory_id,
            content="ok",
            importance=importance,
            session_id=session["id"],
            expires_at=far,
        )
    await client.set_memory_policy(NAMESPACE, flat_policy())
    await client.end_session(session["id"])
    server.clock.advance(30 * DAY)
    assert len(ids(server)) == 2
    assert "c" in ids(server)


async def test_idle_session_ends_by_itself(client: AsyncDakeraClient, server: DevServer) -> None:
    """A session ends after its idle timeout; a timeout of zero never does."""
    idle = await client.start_session("ada")
    kept = await client.start_session("ada", idle_timeout_secs=0)
    server.clock.advance(14_400)
    assert (await client.get_session(idle["id"]))["ended_reason"] == "idle"
    assert "ended_at" not in await client.get_session(kept["id"])


async def test_rate_limit_of_the_policy(http: httpx.AsyncClient, server: DevServer) -> None:
    """Stores over the policy's rate are 429 with Retry-After until a minute has passed."""
    await http.post("/v1/agents", json={"agent_id": "ada"})
    limits = {"rate_limit_enabled": True, "rate_limit_stores_per_minute": 1}
    await http.put(f"/v1/namespaces/{NAMESPACE}/memory_policy", json=limits)
    body = {"agent_id": "ada", "content": "x"}
    assert (await http.post("/v1/memory/store", json=body)).status_code == 200
    refused = await http.post("/v1/memory/store", json=body)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "60")
    server.clock.advance(60)
    assert (await http.post("/v1/memory/store", json=body)).status_code == 200


async def test_evicted_memories_are_gone_without_a_word(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """Eviction by id or predicate removes memories that reads then miss."""
    for memory_id in "abc":
        await store(client, memory_id, importance=0.1 if memory_id == "c" else 0.5)
    assert server.evict("ada", ["a", "unknown"]) == 1
    assert server.evict("ada", lambda memory: memory["importance"] < 0.2) == 1
    assert [memory["id"] for memory in await client.agent_memories("ada")] == ["b"]


async def test_restored_backup_rolls_history_back(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """Restoring a backup brings deleted memories back and takes later ones away."""
    await store(client, "old", ttl_seconds=60)
    backup = server.snapshot()
    await client.forget("ada", "old")
    await store(client, "new")
    server.restore(backup)
    assert ids(server) == {"old"}
    server.clock.advance(60)
    assert ids(server) == set()
