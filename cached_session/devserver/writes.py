"""Write requests: store, update and forget memories.

Only this module makes records from requests.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import replace
from typing import Any

from cached_session.devserver import validation
from cached_session.devserver.memories import AgentMemories, Record
from cached_session.devserver.policy import similarity, ttl_of, word_counts
from cached_session.devserver.responses import ApiError, invalid, missing
from cached_session.devserver.sessions import note_activity
from cached_session.devserver.state import State, namespace_of

CHILD_MIN_CHARS = 80
"""Minimum length of content from which sentences are derived."""
MAX_CHILDREN = 5
"""Maximum number of sentences that are derived from one memory."""

_SENTENCE = re.compile(r"[^.!?]+[.!?]*")


def check_item(state: State, item: Any, now: float, *, with_id: bool = True) -> dict[str, Any]:
    """Return the fields of a valid new item, with defaults for missing fields."""
    if not isinstance(item, dict):
        raise invalid("a memory must be an object")
    content = validation.check_content(item.get("content"), in_bytes=state.version.is_v0122)
    if state.modes.strips_nul:
        content = content.replace("\0", "")
    fields: dict[str, Any] = {
        "content": content,
        "memory_type": validation.check_memory_type(item.get("memory_type") or "episodic"),
        "importance": 0.5,
        "tags": [],
        "expires": validation.check_expiry(item, now),
    }
    if item.get("importance") is not None:
        fields["importance"] = validation.check_importance(item["importance"])
    if item.get("tags") is not None:
        fields["tags"] = validation.check_tags(item["tags"])
    if item.get("session_id") is not None:
        fields["session_id"] = validation.check_session_id(
            item["session_id"], allow_colon=state.version.is_v0123
        )
    if item.get("metadata") is not None:
        fields["metadata"] = validation.check_metadata(
            item["metadata"], max_bytes=state.modes.metadata_max_bytes
        )
    if item.get("lang") is not None:
        validation.check_language(item["lang"])
    if item.get("event_time") is not None and state.version.is_v0123:
        event_time = validation.check_event_time(item["event_time"])
        fields["metadata"] = {**fields.get("metadata", {}), "_dakera_event_time": event_time}
    if with_id and item.get("id") is not None:
        fields["id"] = validation.check_memory_id(item["id"])
    return fields


def store(state: State, agent_id: str, fields: dict[str, Any], now: float) -> tuple[Record, bool]:
    """Store one checked item and return (its record, True).

    If the policy drops the item as a near-duplicate of a memory, return (that memory, False).
    """
    memories, _ = state.get_or_create_agent(agent_id)
    policy = state.policy(namespace_of(agent_id))
    if policy["dedup_on_store"]:
        duplicate = _find_near_duplicate(memories, fields, policy["dedup_threshold"])
        if duplicate is not None:
            return duplicate, False
    memory_id = fields.get("id") or f"mem_{uuid.uuid4().hex}"
    replaced = memories.records.get(memory_id)
    created_at = int(now)
    if replaced is not None and state.modes.created_at_on_replace == "keep":
        created_at = replaced.created_at
    expires = fields["expires"]
    if expires is None:
        ttl = ttl_of(policy, fields["memory_type"])
        expires = None if ttl is None else now + ttl
    record = Record(
        doc=_new_document(agent_id, memory_id, fields, created_at, int(now)),
        base_importance=fields["importance"],
        expires=expires,
        explicit_expiry=fields["expires"] is not None,
    )
    if replaced is not None:
        state.remove(agent_id, memory_id)
    state.put(agent_id, record)
    if state.modes.derived_children != "none":
        _derive_children(state, agent_id, record)
    state.events.publish(
        "stored",
        agent_id,
        memory_id=memory_id,
        content=record.doc["content"],
        importance=record.doc["importance"],
        tags=record.doc["tags"],
    )
    return record, True


def _new_document(
    agent_id: str, memory_id: str, fields: dict[str, Any], created_at: int, now: int
) -> dict[str, Any]:
    """Return the JSON object of a new memory."""
    optional: dict[str, Any] = {
        name: fields[name] for name in ("session_id", "metadata") if name in fields
    }
    return {
        "id": memory_id,
        "agent_id": agent_id,
        "content": fields["content"],
        "memory_type": fields["memory_type"],
        "importance": fields["importance"],
        "tags": fields["tags"],
        **optional,
        "created_at": created_at,
        "updated_at": now,
        "last_accessed_at": now,
        "access_count": 0,
    }


def _find_near_duplicate(
    memories: AgentMemories, fields: dict[str, Any], threshold: float
) -> Record | None:
    counts = word_counts(fields["content"])
    for record in memories.records.values():
        is_other = record.parent is None and record.id != fields.get("id")
        if is_other and similarity(counts, word_counts(record.doc["content"])) >= threshold:
            return record
    return None


def _derive_children(state: State, agent_id: str, parent: Record) -> None:
    content = parent.doc["content"]
    if len(content) < CHILD_MIN_CHARS:
        return
    sentences = [part.strip() for part in _SENTENCE.findall(content) if part.strip()]
    for number, sentence in enumerate(sentences[:MAX_CHILDREN]):
        digest = hashlib.sha256(f"{agent_id}\0{parent.id}\0{number}".encode()).hexdigest()[:24]
        # Children copy the tags, session and metadata of the parent; only their id is different.
        doc = {**parent.doc, "id": f"mem_s{digest}", "content": sentence}
        child = replace(parent, doc=doc, parent=parent.id)
        state.put(agent_id, child)


def check_rate(state: State, agent_id: str, field: str, amount: int, now: float) -> None:
    """Raise a 429 if `amount` more stores or recalls exceed the rate limit of the namespace.

    `field` is "stores" or "recalls".
    """
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
    """Store a single memory and return the answer."""
    now = state.clock.now()
    fields = check_item(state, body, now, with_id=False)
    check_rate(state, agent_id, "stores", 1, now)
    record, _ = store(state, agent_id, fields, now)
    answer: dict[str, Any] = {"memory": record.doc, "embedding_time_ms": 1}
    session = note_activity(state, agent_id, fields.get("session_id"), 1)
    if session is not None:
        answer["session_state"] = "ended" if "ended_at" in session else "active"
    if state.version.is_v0123:
        answer.update(validation.truncation_report(fields["content"]))
        warnings = validation.unknown_field_warnings(body, validation.STORE_FIELDS)
        if warnings:
            answer["warnings"] = warnings
    return answer


def store_batch(
    state: State, agent_id: str, body: dict[str, Any], *, only_first: int | None = None
) -> dict[str, Any]:
    """Store a batch and return its answer; an invalid item refuses the whole batch.

    With `only_first`, store that many items and raise a 500, as a server without atomic batches
    does.
    """
    items = body.get("memories")
    if not isinstance(items, list) or not 1 <= len(items) <= validation.MAX_BATCH_ITEMS:
        raise invalid(f"memories must be a list of 1 to {validation.MAX_BATCH_ITEMS} items")
    if body.get("lang") is not None:
        validation.check_language(body["lang"])
    now = state.clock.now()
    checked = [check_item(state, item, now) for item in items]
    existing = _check_batch_ids(state, agent_id, checked)
    check_rate(state, agent_id, "stores", len(items), now)
    stored: list[dict[str, Any]] = []
    ended: dict[str, None] = {}
    for number, fields in enumerate(checked):
        if only_first is not None and number >= only_first:
            state.commit()
            raise ApiError(500, "STORAGE_ERROR", "the batch was stored only in part")
        if state.modes.existing_id == "ignore" and fields.get("id") in existing:
            continue
        record, is_new = store(state, agent_id, fields, now)
        if not is_new:
            continue
        stored.append(record.doc)
        session = note_activity(state, agent_id, fields.get("session_id"), 1)
        if session is not None and "ended_at" in session:
            ended[session["id"]] = None
    return _batch_answer(state, body, items, stored, list(ended))


def _check_batch_ids(state: State, agent_id: str, checked: list[dict[str, Any]]) -> frozenset[str]:
    """Return the ids that exist; raise if an id is repeated or the modes refuse existing ids."""
    ids = [fields["id"] for fields in checked if "id" in fields]
    if len(set(ids)) != len(ids):
        raise invalid("memories: an id occurs twice in the batch")
    memories = state.agents.get(agent_id)
    records = {} if memories is None else memories.records
    existing = frozenset(memory_id for memory_id in ids if memory_id in records)
    if existing and state.modes.existing_id == "refuse":
        raise ApiError(
            409, "CONFLICT", "memories: an id exists already", details=", ".join(sorted(existing))
        )
    return existing


def _batch_answer(
    state: State,
    body: dict[str, Any],
    items: list[Any],
    stored: list[dict[str, Any]],
    ended_sessions: list[str],
) -> dict[str, Any]:
    """Return the answer to a batch, with the fields that the server's version has."""
    names = ("id", "content", "agent_id", "tags", "importance", "created_at")
    answer: dict[str, Any] = {
        "stored": [{name: doc[name] for name in names} for doc in stored],
        "stored_count": len(stored),
        "total_embedding_time_ms": len(stored),
    }
    if ended_sessions and state.version.is_v0122:
        answer["ended_sessions"] = ended_sessions
    if state.version.is_v0123:
        reports = [(doc["id"], validation.truncation_report(doc["content"])) for doc in stored]
        truncated = [
            {"id": memory_id, **{k: report[k] for k in report if k != "truncated"}}
            for memory_id, report in reports
            if report
        ]
        warnings = validation.unknown_field_warnings(body, validation.BATCH_FIELDS)
        warnings += validation.unknown_item_field_warnings(items)
        if truncated:
            answer["truncated"] = truncated
        if warnings:
            answer["warnings"] = warnings
    return answer


def update(state: State, agent_id: str, memory_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Change the given fields of a memory and return it; the expiry does not change."""
    memories = state.agents.get(agent_id)
    record = memories.records.get(memory_id) if memories is not None else None
    if record is None:
        raise missing("memory", f"memory {memory_id} not found")
    doc = dict(record.doc)
    if body.get("content") is not None:
        # Content over the limit, stored by an older server, may become shorter but not longer.
        size = len(doc["content"].encode())
        doc["content"] = validation.check_content(
            body["content"], longest=max(validation.MAX_CONTENT_BYTES, size - 1)
        )
        if state.modes.strips_nul:
            doc["content"] = doc["content"].replace("\0", "")
    if body.get("memory_type") is not None:
        doc["memory_type"] = validation.check_memory_type(body["memory_type"])
    if body.get("tags") is not None:
        doc["tags"] = validation.check_tags(body["tags"])
    if body.get("metadata") is not None:
        new = validation.check_metadata(body["metadata"], max_bytes=state.modes.metadata_max_bytes)
        merge = state.modes.metadata_update == "merge"
        doc["metadata"] = {**doc.get("metadata", {}), **new} if merge else new
    if body.get("lang") is not None:
        validation.check_language(body["lang"])
    base = record.base_importance
    if body.get("importance") is not None:
        base = doc["importance"] = validation.check_importance(body["importance"])
        state.events.publish("importance_updated", agent_id, memory_id=memory_id, importance=base)
    doc["updated_at"] = int(state.clock.now())
    state.put(agent_id, replace(record, doc=doc, base_importance=base))
    report = validation.truncation_report(doc["content"]) if body.get("content") is not None else {}
    return {**doc, **report} if state.version.is_v0123 else doc


def forget(state: State, agent_id: str, body: dict[str, Any]) -> int:
    """Delete the memories that match all given selectors; return the number of deleted rows."""
    memories = state.agents.get(agent_id)
    ids = body.get("memory_ids")
    predicates: dict[str, Any] = {}
    if ids is not None and not (isinstance(ids, list) and all(isinstance(i, str) for i in ids)):
        raise invalid("memory_ids must be a list of strings")
    if body.get("tags") is not None:
        predicates["tags"] = validation.check_tags(body["tags"], for_writing=False)
    if body.get("session_id") is not None:
        predicates["session_id"] = validation.check_text(body, "session_id")
    if body.get("before_timestamp") is not None:
        predicates["created_before"] = (
            validation.check_integer(body["before_timestamp"], "before_timestamp", 0) - 1
        )
    if ids is None and not predicates:
        raise invalid("one of memory_ids, tags, session_id, before_timestamp is required")
    if memories is None:
        matching: list[str] = []
    else:
        candidates = memories.records if ids is None else dict.fromkeys(ids)
        records = [memories.records[i] for i in candidates if i in memories.records]
        matching = [r.id for r in records if validation.matches_filter(r.doc, predicates)]
    if not matching and ids and state.modes.forget_unknown == "not_found":
        raise missing("memory", "no such memory")
    return forget_ids(state, agent_id, matching)


def forget_ids(state: State, agent_id: str, ids: list[str]) -> int:
    """Delete memories with one `forgotten` event each; return the number of deleted rows.

    The count includes derived sentences, because Dakera counts each as a row.
    """
    memories = state.agents.get(agent_id)
    if memories is None:
        return 0
    before = memories.count(with_children=True)
    for memory_id in ids:
        if state.remove(agent_id, memory_id) is not None:
            state.events.publish("forgotten", agent_id, memory_id=memory_id)
    return before - memories.count(with_children=True)
