"""Storing, updating and forgetting: the only module that makes memories out of requests."""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import replace
from typing import Any

from cached_session.devserver import validation
from cached_session.devserver.memories import AgentMemories, Record
from cached_session.devserver.policy import similarity, ttl_of, words
from cached_session.devserver.responses import ApiError, invalid, missing
from cached_session.devserver.sessions import note_activity
from cached_session.devserver.state import State, namespace_of

CHILD_MIN_CHARS = 80
"""Content from this length on is split into derived sentences."""
MAX_CHILDREN = 5

_SENTENCE = re.compile(r"[^.!?]+[.!?]*")


def checked_item(state: State, item: Any, now: float, *, with_id: bool = True) -> dict[str, Any]:
    """Return a new item's fields after every rule of storing, with defaults filled in."""
    if not isinstance(item, dict):
        raise invalid("a memory must be an object")
    content = validation.content(item.get("content"), in_bytes=state.version.is_v0122)
    if state.modes.strips_nul:
        content = content.replace("\0", "")
    fields: dict[str, Any] = {
        "content": content,
        "memory_type": validation.memory_type(item.get("memory_type") or "episodic"),
        "importance": 0.5,
        "tags": [],
        "expires": validation.expiry(item, now),
    }
    if item.get("importance") is not None:
        fields["importance"] = validation.importance(item["importance"])
    if item.get("tags") is not None:
        fields["tags"] = validation.tags(item["tags"])
    if item.get("session_id") is not None:
        fields["session_id"] = validation.session_id(
            item["session_id"], allow_colon=state.version.is_v0123
        )
    if item.get("metadata") is not None:
        fields["metadata"] = validation.metadata(
            item["metadata"], max_bytes=state.modes.metadata_max_bytes
        )
    if item.get("lang") is not None:
        validation.language(item["lang"])
    if item.get("event_time") is not None and state.version.is_v0123:
        happened = validation.event_time(item["event_time"])
        fields["metadata"] = {**fields.get("metadata", {}), "_dakera_event_time": happened}
    if with_id and item.get("id") is not None:
        fields["id"] = validation.memory_id(item["id"])
    return fields


def store(state: State, agent_id: str, fields: dict[str, Any], now: float) -> tuple[Record, bool]:
    """Store one checked item; return its record, or the near-duplicate that made it drop."""
    known, _ = state.agent(agent_id)
    policy = state.policy(namespace_of(agent_id))
    if policy["dedup_on_store"]:
        twin = _near_duplicate(known, fields, policy["dedup_threshold"])
        if twin is not None:
            return twin, False
    memory_id = fields.get("id") or f"mem_{uuid.uuid4().hex}"
    before = known.records.get(memory_id)
    created = int(now)
    if before is not None and state.modes.created_at_on_replace == "keep":
        created = before.created_at
    doc: dict[str, Any] = {
        "id": memory_id,
        "agent_id": agent_id,
        "content": fields["content"],
        "memory_type": fields["memory_type"],
        "importance": fields["importance"],
        "tags": fields["tags"],
    }
    for optional in ("session_id", "metadata"):
        if optional in fields:
            doc[optional] = fields[optional]
    doc.update(created_at=created, updated_at=int(now), last_accessed_at=int(now), access_count=0)
    expires = fields["expires"]
    if expires is None:
        ttl = ttl_of(policy, fields["memory_type"])
        expires = None if ttl is None else now + ttl
    record = Record(
        doc=doc,
        base_importance=fields["importance"],
        expires=expires,
        explicit_expiry=fields["expires"] is not None,
    )
    if before is not None:
        state.remove(agent_id, memory_id)
    state.put(agent_id, record)
    if state.modes.derived_children != "none":
        _derive_children(state, agent_id, record)
    state.events.publish(
        "stored",
        agent_id,
        memory_id=memory_id,
        content=doc["content"],
        importance=doc["importance"],
        tags=doc["tags"],
    )
    return record, True


def _near_duplicate(
    known: AgentMemories, fields: dict[str, Any], threshold: float
) -> Record | None:
    bag = words(fields["content"])
    for record in known.records.values():
        is_other = record.parent is None and record.id != fields.get("id")
        if is_other and similarity(bag, words(record.doc["content"])) >= threshold:
            return record
    return None


def _derive_children(state: State, agent_id: str, parent: Record) -> None:
    content = parent.doc["content"]
    if len(content) < CHILD_MIN_CHARS:
        return
    sentences = [part.strip() for part in _SENTENCE.findall(content) if part.strip()]
    for number, sentence in enumerate(sentences[:MAX_CHILDREN]):
        digest = hashlib.sha256(f"{agent_id}\0{parent.id}\0{number}".encode()).hexdigest()[:24]
        # They copy the parent's tags, session and metadata, so only the id gives them away.
        doc = {**parent.doc, "id": f"mem_s{digest}", "content": sentence}
        child = replace(parent, doc=doc, parent=parent.id)
        state.put(agent_id, child)


def check_rate(state: State, agent_id: str, field: str, amount: int, now: float) -> None:
    """Refuse (429) what would exceed the policy's rate limit for the namespace."""
    policy = state.policy(namespace_of(agent_id))
    limit = policy[f"rate_limit_{field}_per_minute"]
    if not policy["rate_limit_enabled"] or limit is None:
        return
    times = state.store_times.setdefault(f"{field}:{agent_id}", [])
    times[:] = [at for at in times if at > now - 60]
    if len(times) + amount > limit:
        message = f"the namespace allows {limit} {field} a minute"
        raise ApiError(429, "RATE_LIMIT_EXCEEDED", message, headers={"Retry-After": "60"})
    times.extend([now] * amount)


def store_one(state: State, agent_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Carry out a single store and return its answer."""
    now = state.clock.now()
    fields = checked_item(state, body, now, with_id=False)
    check_rate(state, agent_id, "stores", 1, now)
    record, _ = store(state, agent_id, fields, now)
    answer: dict[str, Any] = {"memory": record.doc, "embedding_time_ms": 1}
    session = note_activity(state, agent_id, fields.get("session_id"), 1)
    if session is not None:
        answer["session_state"] = "ended" if "ended_at" in session else "active"
    if state.version.is_v0123:
        answer.update(validation.truncation(fields["content"]))
        warnings = validation.unknown_fields(body, validation.STORE_FIELDS)
        if warnings:
            answer["warnings"] = warnings
    return answer


def store_batch(
    state: State, agent_id: str, body: dict[str, Any], *, only_first: int | None = None
) -> dict[str, Any]:
    """Carry out a batch: all of it, or (any rule broken) nothing.

    With `only_first` that many items are stored and the rest fails with 500, which is what a server
    whose batches are not atomic would do.
    """
    items = body.get("memories")
    if not isinstance(items, list) or not 1 <= len(items) <= validation.MAX_BATCH_ITEMS:
        raise invalid(f"memories must be a list of 1 to {validation.MAX_BATCH_ITEMS} items")
    if body.get("lang") is not None:
        validation.language(body["lang"])
    now = state.clock.now()
    checked = [checked_item(state, item, now) for item in items]
    ids = [fields["id"] for fields in checked if "id" in fields]
    if len(set(ids)) != len(ids):
        raise invalid("memories: an id occurs twice in the batch")
    known = state.agents.get(agent_id)
    taken = {memory_id for memory_id in ids if known is not None and memory_id in known.records}
    if taken and state.modes.existing_id == "refuse":
        raise ApiError(
            409, "CONFLICT", "memories: an id exists already", details=", ".join(sorted(taken))
        )
    check_rate(state, agent_id, "stores", len(items), now)
    stored: list[dict[str, Any]] = []
    truncated: list[dict[str, Any]] = []
    ended: dict[str, None] = {}
    for number, fields in enumerate(checked):
        if only_first is not None and number >= only_first:
            state.commit()
            raise ApiError(500, "STORAGE_ERROR", "the batch was stored only in part")
        if state.modes.existing_id == "ignore" and fields.get("id") in taken:
            continue
        record, is_new = store(state, agent_id, fields, now)
        if not is_new:
            continue
        doc = record.doc
        stored.append(
            {
                name: doc[name]
                for name in ("id", "content", "agent_id", "tags", "importance", "created_at")
            }
        )
        session = note_activity(state, agent_id, fields.get("session_id"), 1)
        if session is not None and "ended_at" in session:
            ended[session["id"]] = None
        report = validation.truncation(doc["content"])
        if report:
            truncated.append(
                {"id": doc["id"], **{k: report[k] for k in report if k != "truncated"}}
            )
    answer: dict[str, Any] = {
        "stored": stored,
        "stored_count": len(stored),
        "total_embedding_time_ms": len(stored),
    }
    if ended and state.version.is_v0122:
        answer["ended_sessions"] = list(ended)
    if state.version.is_v0123:
        warnings = validation.unknown_fields(body, validation.BATCH_FIELDS)
        warnings += validation.unknown_item_fields(items)
        if truncated:
            answer["truncated"] = truncated
        if warnings:
            answer["warnings"] = warnings
    return answer


def update(state: State, agent_id: str, memory_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Change the given fields of a memory; its expiry stays as it is."""
    known = state.agents.get(agent_id)
    record = known.records.get(memory_id) if known is not None else None
    if record is None:
        raise missing("memory", f"memory {memory_id} not found")
    doc = dict(record.doc)
    if body.get("content") is not None:
        # A memory from before the limit may shrink, never grow.
        size = len(doc["content"].encode())
        doc["content"] = validation.content(
            body["content"], longest=max(validation.MAX_CONTENT_BYTES, size - 1)
        )
        if state.modes.strips_nul:
            doc["content"] = doc["content"].replace("\0", "")
    if body.get("memory_type") is not None:
        doc["memory_type"] = validation.memory_type(body["memory_type"])
    if body.get("tags") is not None:
        doc["tags"] = validation.tags(body["tags"])
    if body.get("metadata") is not None:
        new = validation.metadata(body["metadata"], max_bytes=state.modes.metadata_max_bytes)
        merge = state.modes.metadata_update == "merge"
        doc["metadata"] = {**doc.get("metadata", {}), **new} if merge else new
    if body.get("lang") is not None:
        validation.language(body["lang"])
    base = record.base_importance
    if body.get("importance") is not None:
        base = doc["importance"] = validation.importance(body["importance"])
        state.events.publish("importance_updated", agent_id, memory_id=memory_id, importance=base)
    doc["updated_at"] = int(state.clock.now())
    state.put(agent_id, replace(record, doc=doc, base_importance=base))
    report = validation.truncation(doc["content"]) if body.get("content") is not None else {}
    return {**doc, **report} if state.version.is_v0123 else doc


def forget(state: State, agent_id: str, body: dict[str, Any]) -> int:
    """Delete what all given selectors select; return how many memories that were."""
    known = state.agents.get(agent_id)
    ids = body.get("memory_ids")
    rule: dict[str, Any] = {}
    if ids is not None and not (isinstance(ids, list) and all(isinstance(i, str) for i in ids)):
        raise invalid("memory_ids must be a list of strings")
    if body.get("tags") is not None:
        rule["tags"] = validation.tags(body["tags"], for_writing=False)
    if body.get("session_id") is not None:
        rule["session_id"] = validation.text(body, "session_id")
    if body.get("before_timestamp") is not None:
        rule["created_before"] = (
            validation.integer(body["before_timestamp"], "before_timestamp", 0) - 1
        )
    if ids is None and not rule:
        raise invalid("one of memory_ids, tags, session_id, before_timestamp is required")
    if known is None:
        doomed: list[str] = []
    else:
        candidates = known.records if ids is None else dict.fromkeys(ids)
        doomed = [i for i in candidates if i in known.records]
        doomed = [i for i in doomed if validation.passes(known.records[i].doc, rule)]
    if not doomed and ids and state.modes.forget_unknown == "not_found":
        raise missing("memory", "no such memory")
    return forget_ids(state, agent_id, doomed)


def forget_ids(state: State, agent_id: str, ids: list[str]) -> int:
    """Delete memories with one `forgotten` event each; return how many rows went.

    As Dakera counts: the derived sentences of a memory are rows of their own.
    """
    known = state.agents.get(agent_id)
    if known is None:
        return 0
    before = known.count(with_children=True)
    for memory_id in ids:
        if state.remove(agent_id, memory_id) is not None:
            state.events.publish("forgotten", agent_id, memory_id=memory_id)
    return before - known.count(with_children=True)
