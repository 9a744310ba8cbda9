"""Routes of single memories and batches: store, get, update, forget, recall, search, trash."""

from __future__ import annotations

from typing import Any

from starlette.routing import BaseRoute

from cached_session.devserver import queries, validation, writes
from cached_session.devserver.api_call import ApiCall, route
from cached_session.devserver.responses import ApiError, invalid, missing
from cached_session.devserver.state import State, namespace_of


def routes(state: State) -> list[BaseRoute]:
    """Return the memory routes that the server's version has."""
    table = [
        ("POST", "/v1/memory/store", store),
        ("POST", "/v1/memories/store/batch", store_batch),
        ("GET", "/v1/memory/get/{id:path}", get),
        ("PUT", "/v1/memory/update/{id:path}", update),
        ("POST", "/v1/memory/forget", forget),
        ("POST", "/v1/memory/importance", importance),
        ("POST", "/v1/memories/recall/batch", recall_batch),
        ("DELETE", "/v1/memories/forget/batch", forget_batch),
        ("POST", "/v1/memory/recall", recall),
        ("POST", "/v1/memory/search", search),
    ]
    if state.version.is_v0123:
        table += [
            ("GET", "/v1/memory/deduplicated", deduplicated),
            ("POST", "/v1/memory/deduplicated/{id}/restore", restore_deduplicated),
        ]
    return [route(state, method, path, function) for method, path, function in table]


def store(call: ApiCall) -> Any:
    """Store one memory under an id that the server chooses."""
    return writes.store_one(call.state, call.authorised_agent("write"), call.body)


def store_batch(call: ApiCall) -> Any:
    """Store up to 1000 memories under ids that the client chooses, all or none."""
    agent_id = call.authorised_agent("write")
    only_first = min((fault.items for fault in call.faults("partial_batch")), default=None)
    return writes.store_batch(call.state, agent_id, call.body, only_first=only_first)


def get(call: ApiCall) -> Any:
    """Return one memory; from 0.12.3 the agent may be omitted if only one agent has the id."""
    memory_id = call.path("id")
    agent_id = call.query.get("agent_id")
    if agent_id is not None:
        memories = call.state.agents.get(call.authorised_agent("read", agent_id))
        record = call.visible(memories).records.get(memory_id) if memories is not None else None
        if record is None:
            raise missing("memory", f"memory {memory_id} not found")
        return record.doc
    call.require("read")
    if not call.state.version.is_v0123:
        raise invalid("agent_id is required")
    holders = [
        (holder, record)
        for holder, memories in call.state.agents.items()
        if call.key.grants(namespace_of(holder))
        and (record := call.visible(memories).records.get(memory_id)) is not None
    ]
    if not holders:
        raise missing("memory", f"memory {memory_id} not found")
    if len(holders) > 1:
        names = ", ".join(holder for holder, _ in holders)
        raise invalid(f"several agents hold {memory_id}: {names}; name one with agent_id")
    return holders[0][1].doc


def update(call: ApiCall) -> Any:
    """Change the content, metadata, type, importance or tags of a memory."""
    agent_id = call.query.get("agent_id")
    if agent_id is None:
        call.require("write")
        raise invalid("agent_id is required")
    return writes.update(
        call.state, call.authorised_agent("write", agent_id), call.path("id"), call.body
    )


def forget(call: ApiCall) -> Any:
    """Delete memories by id, tags, session or age."""
    return {"deleted_count": writes.forget(call.state, call.authorised_agent("write"), call.body)}


def importance(call: ApiCall) -> Any:
    """Set the importance of one memory, or of several: the async SDK sends `memory_ids`."""
    agent_id = call.authorised_agent("write")
    ids = call.body.get("memory_ids") or [call.body.get("memory_id")]
    if not isinstance(ids, list) or not all(isinstance(memory_id, str) for memory_id in ids):
        raise invalid("memory_id is required")
    value = validation.check_importance(call.body.get("importance"))
    for memory_id in ids:
        writes.update(call.state, agent_id, memory_id, {"importance": value})
    return {"updated": len(ids)}


def recall_batch(call: ApiCall) -> Any:
    """List the memories that match a filter, without ranking."""
    agent_id = call.authorised_agent("read")
    return queries.filter_memories(call.state, call.memories_of(agent_id), call.body)


def forget_batch(call: ApiCall) -> Any:
    """Delete the memories that match a filter; an empty filter is refused."""
    agent_id = call.authorised_agent("write")
    predicates = validation.check_filter_object(call.body.get("filter"))
    if not predicates:
        raise invalid("filter needs at least one predicate")
    memories = call.state.agents.get(agent_id)
    ids = queries.matching_ids(memories, predicates) if memories is not None else []
    return {"deleted_count": writes.forget_ids(call.state, agent_id, ids)}


def recall(call: ApiCall) -> Any:
    """Rank memories by a text query and count an access of each result."""
    agent_id = call.authorised_agent("read")
    writes.check_rate(call.state, agent_id, "recalls", 1, call.state.clock.now())
    return queries.recall(call.state, agent_id, call.memories_of(agent_id), call.body)


def search(call: ApiCall) -> Any:
    """Rank memories by a text query without side effects."""
    memories = call.memories_of(call.authorised_agent("read"))
    return {"memories": queries.rank_memories(call.state, memories, call.body, 10)}


def deduplicated(call: ApiCall) -> Any:
    """List the memories that deduplication deleted and that can be restored, newest first."""
    agent_id = call.authorised_agent("read", call.query.get("agent_id", ""))
    now = call.state.clock.now()
    entries = [
        kept["entry"]
        for (holder, _), kept in reversed(call.state.trash.items())
        if holder == agent_id and kept["entry"]["restorable_until"] > now
    ]
    return {"agent_id": agent_id, "memories": entries, "count": len(entries)}


def restore_deduplicated(call: ApiCall) -> Any:
    """Restore a memory that deduplication deleted, under its original id."""
    agent_id = call.authorised_agent("write", call.query.get("agent_id", ""))
    memory_id = call.path("id")
    kept = call.state.trash.get((agent_id, memory_id))
    if kept is None or kept["entry"]["restorable_until"] <= call.state.clock.now():
        raise missing("memory", f"memory {memory_id} has no copy in the trash")
    if memory_id in call.state.get_or_create_agent(agent_id)[0].records:
        raise ApiError(409, "CONFLICT", f"memory {memory_id} exists again")
    del call.state.trash[agent_id, memory_id]
    call.state.put(agent_id, kept["record"])
    call.state.events.publish("restored", agent_id, memory_id=memory_id)
    return kept["record"].doc
