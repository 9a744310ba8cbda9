from __future__ import annotations

import dakera
import httpx
import pytest
from dakera import AsyncDakeraClient
from dakera.models import (
    BatchForgetRequest,
    BatchMemoryFilter,
    BatchRecallRequest,
    BatchStoreMemoryItem,
    BatchStoreMemoryRequest,
)

from cached_session.devserver import DevServer


def batch(*ids: str, agent: str = "ada", **fields: object) -> BatchStoreMemoryRequest:
    items = [
        BatchStoreMemoryItem(f"about {memory_id}", id=memory_id, **fields) for memory_id in ids
    ]
    return BatchStoreMemoryRequest(agent, items)


async def test_store_answers_the_memory_under_a_new_id(client: AsyncDakeraClient) -> None:
    """A stored memory comes back from `get` exactly as the store answered it."""
    stored = await client.store_memory(
        "ada", "hello\n", importance=0.7, metadata={"n": 1.0, "b": [1]}, tags=["t"], session_id="s"
    )
    assert stored["content"] == "hello\n"
    assert stored["metadata"] == {"n": 1.0, "b": [1]}
    assert isinstance(stored["created_at"], int)
    assert await client.get_memory("ada", stored["id"]) == stored


async def test_batch_answers_in_request_order(client: AsyncDakeraClient) -> None:
    """A batch is stored under the client's ids and answered in the order it was sent."""
    answer = await client.store_memories_batch(batch("c", "a", "b"))
    assert [memory.id for memory in answer.stored] == ["c", "a", "b"]
    assert answer.stored_count == 3


async def test_batch_replaces_an_existing_id(client: AsyncDakeraClient, server: DevServer) -> None:
    """A repeated id replaces the whole record and moves it to the present."""
    await client.store_memories_batch(batch("a", metadata={"old": 1}))
    server.clock.advance(10)
    await client.store_memories_batch(batch("a", tags=["new"]))
    (memory,) = server.memories("ada")
    assert memory["tags"] == ["new"]
    assert "metadata" not in memory
    assert memory["created_at"] == int(server.clock.now())


async def test_get_finds_the_only_holder_of_an_id(client: AsyncDakeraClient) -> None:
    """`get` works without an agent while one agent holds the id, and is refused with two."""
    await client.store_memories_batch(batch("x"))
    assert (await client.get_memory(None, "x"))["agent_id"] == "ada"
    await client.store_memories_batch(batch("x", agent="bob"))
    with pytest.raises(dakera.ValidationError, match="ada, bob"):
        await client.get_memory(None, "x")


async def test_missing_memory_is_a_404_that_names_it(client: AsyncDakeraClient) -> None:
    """Getting or updating an unknown id is a 404 with resource `memory`."""
    with pytest.raises(dakera.NotFoundError) as failure:
        await client.get_memory("ada", "nope")
    assert failure.value.resource == "memory"
    with pytest.raises(dakera.NotFoundError):
        await client.update_memory("ada", "nope", content="x")


async def test_update_changes_only_what_it_names(client: AsyncDakeraClient) -> None:
    """An update keeps what it does not name, and replaces metadata and tags whole."""
    await client.store_memories_batch(batch("x", metadata={"a": 1}, tags=["t"]))
    updated = await client.update_memory("ada", "x", metadata={"b": 2}, importance=0.9)
    assert updated["content"] == "about x"
    assert updated["metadata"] == {"b": 2}
    assert updated["tags"] == ["t"]
    assert updated["importance"] == 0.9


async def test_forget_counts_what_existed(client: AsyncDakeraClient) -> None:
    """Forgetting counts the memories that were there: one, and then none."""
    await client.store_memories_batch(batch("x"))
    assert await client.forget("ada", "x") == {"deleted_count": 1}
    assert await client.forget("ada", "x") == {"deleted_count": 0}


async def test_forget_selects_by_tag_session_and_age(
    client: AsyncDakeraClient, http: httpx.AsyncClient, server: DevServer
) -> None:
    """Several selectors of a forget must all hold, and none at all is refused."""
    await client.store_memories_batch(batch("a", "b", tags=["t"], session_id="s"))
    await client.store_memories_batch(batch("c", tags=["t"]))
    selection = {"agent_id": "ada", "tags": ["t"], "session_id": "s"}
    past = {**selection, "before_timestamp": int(server.clock.now())}
    assert (await http.post("/v1/memory/forget", json=past)).json() == {"deleted_count": 0}
    assert (await http.post("/v1/memory/forget", json=selection)).json() == {"deleted_count": 2}
    assert (await http.post("/v1/memory/forget", json={"agent_id": "ada"})).status_code == 400


async def test_filter_needs_every_tag(client: AsyncDakeraClient) -> None:
    """A filter passes memories that carry all its tags, and counts the whole agent as total."""
    await client.store_memories_batch(batch("both", tags=["a", "b"]))
    await client.store_memories_batch(batch("one", tags=["a"]))
    wanted = BatchMemoryFilter(tags=["a", "b"])
    answer = await client.batch_recall(BatchRecallRequest("ada", filter=wanted))
    assert [memory.id for memory in answer.memories] == ["both"]
    assert (answer.total, answer.filtered, answer.truncated) == (2, 1, False)


async def test_filter_time_bounds_are_inclusive(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """Both time bounds of a filter include their own second."""
    await client.store_memories_batch(batch("x"))
    now = int(server.clock.now())
    for bounds, count in [((now, now), 1), ((now + 1, now + 9), 0), ((0, now - 1), 0)]:
        wanted = BatchMemoryFilter(created_after=bounds[0], created_before=bounds[1])
        answer = await client.batch_recall(BatchRecallRequest("ada", filter=wanted))
        assert len(answer.memories) == count


async def test_filter_says_when_the_limit_cut_it(client: AsyncDakeraClient) -> None:
    """An answer cut by its limit says so, and counts what matched before the cut."""
    await client.store_memories_batch(batch(*"abcde"))
    answer = await client.batch_recall(BatchRecallRequest("ada", limit=2))
    assert (len(answer.memories), answer.filtered, answer.truncated) == (2, 5, True)


async def test_batch_forget_refuses_the_empty_filter(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """A filtered delete needs a predicate, and deletes what passes it."""
    await client.store_memories_batch(batch("a", "b", session_id="s"))
    with pytest.raises(dakera.ValidationError):
        await client.batch_forget(BatchForgetRequest("ada", filter=BatchMemoryFilter()))
    wanted = BatchMemoryFilter(session_id="s")
    answer = await client.batch_forget(BatchForgetRequest("ada", filter=wanted))
    assert answer.deleted_count == 2
    assert server.memories("ada") == []


async def test_recall_ranks_by_common_words(client: AsyncDakeraClient) -> None:
    """Recall ranks the memory with the rarer common words first, with its reports."""
    for content in ("the red fox", "the dog", "nothing alike"):
        await client.store_memory("ada", content)
    answer = await client.recall("ada", "the fox", top_k=2)
    assert [memory.content for memory in answer.memories] == ["the red fox", "the dog"]
    scores = [memory.rank_score for memory in answer.memories]
    assert scores == sorted(scores, reverse=True)
    assert answer.rerank_report is not None


async def test_recall_takes_any_tag(client: AsyncDakeraClient) -> None:
    """Recall keeps memories with at least one of the tags, and counts the access."""
    await client.store_memory("ada", "fox one", tags=["a"])
    await client.store_memory("ada", "fox two", tags=["c"])
    answer = await client.recall("ada", "fox", tags=["a", "b"])
    (found,) = answer.memories
    assert found.content == "fox one"
    assert (await client.get_memory("ada", found.id))["access_count"] == 1


async def test_recall_of_an_unknown_agent_is_empty(client: AsyncDakeraClient) -> None:
    """An agent that never stored recalls nothing, and the report says why."""
    answer = await client.recall("nobody", "fox")
    assert answer.memories == []
    assert answer.rerank_report.skipped == "no_candidates"


async def test_search_has_no_side_effects(client: AsyncDakeraClient, server: DevServer) -> None:
    """Search finds like recall and leaves the access count alone."""
    await client.store_memory("ada", "a fox", session_id="s")
    (found,) = await client.search_memories("ada", "fox", session_id="s")
    assert found["content"] == "a fox"
    assert server.memories("ada")[0]["access_count"] == 0


async def test_export_holds_every_memory(client: AsyncDakeraClient) -> None:
    """The export lists all memories whole, and an import puts them back under their ids."""
    await client.store_memories_batch(batch("a", "b", metadata={"k": "v"}, tags=["t"]))
    exported = await client.export_memories("jsonl", "ada")
    assert {memory["id"] for memory in exported.data} == {"a", "b"}
    report = await client.import_memories(exported.raw, "jsonl", "bob")
    assert report.imported_count == 2
    copy = await client.get_memory("bob", "a")
    assert (copy["metadata"], copy["tags"]) == ({"k": "v"}, ["t"])
    assert (await client.import_job_status(report.job_id)).status == "done"


@pytest.mark.parametrize("form", ["csv", "mem0", "zep"])
async def test_export_has_other_formats(client: AsyncDakeraClient, form: str) -> None:
    """Every export format holds each memory once."""
    await client.store_memories_batch(batch("a", "b"))
    assert (await client.export_memories(form, "ada")).count == 2


async def test_event_time_is_kept_in_metadata(client: AsyncDakeraClient) -> None:
    """An event time is written to metadata and leaves the ingest time alone."""
    stored = await client.store_memory("ada", "then", event_time="2001-09-09T01:46:40Z")
    assert stored["metadata"] == {"_dakera_event_time": 1_000_000_000}
    assert stored["created_at"] > 1_000_000_000


async def test_long_content_reports_its_truncated_embedding(client: AsyncDakeraClient) -> None:
    """Content beyond the model's window is stored whole, and the report says what was embedded."""
    content = "word " * 1000
    stored = await client.store_memory("ada", content)
    assert stored["content"] == content
    assert stored["truncated"] is True
    assert stored["content_tokens"] > stored["embedded_tokens"] == stored["max_tokens"]
    item = BatchStoreMemoryItem(content, id="long")
    answer = await client.store_memories_batch(BatchStoreMemoryRequest("ada", [item]))
    assert answer.truncated[0].id == "long"


async def test_unknown_fields_are_ignored_with_a_warning(http: httpx.AsyncClient) -> None:
    """A field that the server does not know is ignored and named in the warnings."""
    single = await http.post(
        "/v1/memory/store", json={"agent_id": "ada", "content": "x", "when": 1}
    )
    assert single.json()["warnings"] == ["unknown field 'when' ignored"]
    items = [{"content": "x", "when": 1}, {"content": "y", "when": 2}]
    several = await http.post(
        "/v1/memories/store/batch", json={"agent_id": "ada", "memories": items}
    )
    assert several.json()["warnings"] == ["unknown field 'memories[].when' ignored (in 2 items)"]


async def test_importance_can_be_set_alone(client: AsyncDakeraClient, server: DevServer) -> None:
    """The importance route changes the importance of the memories it names."""
    await client.store_memories_batch(batch("x"))
    await client.update_importance("ada", ["x"], 0.25)
    assert server.memories("ada")[0]["importance"] == 0.25
