"""Routes of single memories and batches: store, get, update, forget, recall, search, trash."""

from __future__ import annotations

from typing import Any

from starlette.routing import BaseRoute

from cached_session.devserver import queries, validation, writes
from cached_session.devserver.api_call import Call, route
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


def store(call: Call) -> Any:
    """Store one memory under an id of the server's choice."""
    return writes.store_one(call.state, call.agent("write"), call.body)


def store_batch(call: Call) -> Any:
    """Store up to 1000 memories under ids of the client's choice, all or none."""
    agent_id = call.agent("write")
    only_first = min((fault.items for fault in call.faults("partial_batch")), default=None)
    return writes.store_batch(call.state, agent_id, call.body, only_first=only_first)


def get(call: Call) -> Any:
    """Return one memory; from 0.12.3 without naming its agent, when only one holds the id."""
    memory_id = call.path("id")
    agent_id = call.query.get("agent_id")
    if agent_id is not None:
        known = call.state.agents.get(call.agent("read", agent_id))
        record = call.view(known).records.get(memory_id) if known is not None else None
        if record is None:
            raise missing("memory", f"memory {memory_id} not found")
        return record.doc
    call.need("read")
    if not call.state.version.is_v0123:
        raise invalid("agent_id is required")
    holders = [
        (holder, record)
        for holder, known in call.state.agents.items()
        if call.key.grants(namespace_of(holder))
        and (record := call.view(known).records.get(memory_id)) is not None
    ]
    if not holders:
        raise missing("memory", f"memory {memory_id} not found")
    if len(holders) > 1:
        names = ", ".join(holder for holder, _ in holders)
        raise invalid(f"several agents hold {memory_id}: {names}; name one with agent_id")
    return holders[0][1].doc


def update(call: Call) -> Any:
    """Change a memory's content, metadata, type, importance or tags."""
    agent_id = call.query.get("agent_id")
    if agent_id is None:
        call.need("write")
        raise invalid("agent_id is required")
    return writes.update(call.state, call.agent("write", agent_id), call.path("id"), call.body)


def forget(call: Call) -> Any:
    """Delete memories by id, tags, session or age."""
    return {"deleted_count": writes.forget(call.state, call.agent("write"), call.body)}


def importance(call: Call) -> Any:
    """Set the importance of one memory, or of the several that the async SDK names."""
    agent_id = call.agent("write")
    ids = call.body.get("memory_ids") or [call.body.get("memory_id")]
    if not isinstance(ids, list) or not all(isinstance(memory_id, str) for memory_id in ids):
        raise invalid("memory_id is required")
    value = validation.importance(call.body.get("importance"))
    for memory_id in ids:
        writes.update(call.state, agent_id, memory_id, {"importance": value})
    return {"updated": len(ids)}


def recall_batch(call: Call) -> Any:
    """List what passes a filter, without ranking."""
    agent_id = call.agent("read")
    return queries.filtered(call.state, call.read(agent_id), call.body)


def forget_batch(call: Call) -> Any:
    """Delete what passes a filter; the empty filter is refused rather than obeyed."""
    agent_id = call.agent("write")
    rule = validation.filter_object(call.body.get("filter"))
    if not rule:
        raise invalid("filter needs at least one predicate")
    known = call.state.agents.get(agent_id)
    ids = queries.matching_ids(known, rule) if known is not None else []
    return {"deleted_count": writes.forget_ids(call.state, agent_id, ids)}


def recall(call: Call) -> Any:
    """Rank memories against a query, counting each as accessed."""
    agent_id = call.agent("read")
    writes.check_rate(call.state, agent_id, "recalls", 1, call.state.clock.now())
    return queries.recall(call.state, agent_id, call.read(agent_id), call.body)


def search(call: Call) -> Any:
    """Rank memories against a query without side effects."""
    known = call.read(call.agent("read"))
    return {"memories": queries.ranked(call.state, known, call.body, 10)}


def deduplicated(call: Call) -> Any:
    """List what deduplication deleted and can still be restored, newest first."""
    agent_id = call.agent("read", call.query.get("agent_id", ""))
    now = call.state.clock.now()
    entries = [
        kept["entry"]
        for (holder, _), kept in reversed(call.state.trash.items())
        if holder == agent_id and kept["entry"]["restorable_until"] > now
    ]
    return {"agent_id": agent_id, "memories": entries, "count": len(entries)}


def restore_deduplicated(call: Call) -> Any:
    """Put a deduplicated memory back under its own id."""
    agent_id = call.agent("write", call.query.get("agent_id", ""))
    memory_id = call.path("id")
    kept = call.state.trash.get((agent_id, memory_id))
    if kept is None or kept["entry"]["restorable_until"] <= call.state.clock.now():
        raise missing("memory", f"no restorable copy of {memory_id}")
    if memory_id in call.state.agent(agent_id)[0].records:
        raise ApiError(409, "CONFLICT", f"memory {memory_id} exists again")
    del call.state.trash[agent_id, memory_id]
    call.state.put(agent_id, kept["record"])
    call.state.events.publish("restored", agent_id, memory_id=memory_id)
    return kept["record"].doc
