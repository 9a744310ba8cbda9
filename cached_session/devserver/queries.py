"""Read requests: listings, filters, recall by words, statistics and export.

Each function gets the memories as an argument, so that it can read current or stale memories.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from cached_session.devserver import validation
from cached_session.devserver.memories import AgentMemories, Record
from cached_session.devserver.policy import word_counts
from cached_session.devserver.responses import invalid
from cached_session.devserver.state import State, namespace_of

DEFAULT_LISTING = 50
MAX_LISTING = 1000
MAX_SESSION_LISTING = 500
DEFAULT_FILTERED = 100
MAX_FILTERED = 1000
MAX_PREVIEW_CHARS = 10_000

EXPORT_FORMATS = ("jsonl", "csv", "mem0", "zep")


def bounded_limit(state: State, value: int, most: int) -> int:
    """Return a page size up to `most`; lower or refuse a larger size (`Modes.over_limit`)."""
    if value > most and state.modes.over_limit == "reject":
        raise invalid(f"limit must be at most {most}")
    return min(value, most)


def list_memories(
    state: State, memories: AgentMemories, query: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return one page of an agent's memories, newest first."""
    limit = validation.check_query_integer(query.get("limit"), "limit", DEFAULT_LISTING, 1)
    offset = validation.check_query_integer(query.get("offset"), "offset", 0, 0)
    limit = bounded_limit(state, limit, MAX_LISTING)
    derived = not state.version.is_v0122
    if state.version.is_v0122:
        derived = validation.check_query_flag(query.get("include_derived"), "include_derived")
    if not state.version.is_v012:
        offset = 0
    page = memories.page(offset, limit, with_children=derived)
    return cut_previews(state, [record.doc for record in page], query)


def cut_previews(
    state: State, docs: list[dict[str, Any]], query: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Cut the contents to the preview length in the query; without a length, do not cut them."""
    wanted = query.get("content_preview_chars")
    if wanted is None or not state.version.is_v0122:
        return docs
    chars = validation.check_query_integer(wanted, "content_preview_chars", 1, 1)
    if chars > MAX_PREVIEW_CHARS:
        raise invalid(f"content_preview_chars must be at most {MAX_PREVIEW_CHARS}")
    return [
        {
            **doc,
            "content": doc["content"][:chars],
            "content_len": len(doc["content"]),
            "content_truncated": len(doc["content"]) > chars,
        }
        for doc in docs
    ]


def filter_memories(
    state: State, memories: AgentMemories, body: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the memories that match a filter, in arbitrary order, up to the limit."""
    predicates = validation.check_filter_object(body.get("filter"))
    limit = DEFAULT_FILTERED
    if body.get("limit") is not None:
        limit = validation.check_integer(body["limit"], "limit", 1)
    limit = bounded_limit(state, limit, MAX_FILTERED)
    with_children = state.modes.derived_children == "leak"
    matches = [
        record
        for record in memories.records.values()
        if (with_children or record.parent is None)
        and validation.matches_filter(record.doc, predicates)
    ]
    # The order is undocumented, so use an arbitrary order; the seed makes this order repeatable.
    matches.sort(key=lambda record: memories.shuffle_key(record.id))
    answer: dict[str, Any] = {
        "memories": [record.doc for record in matches[:limit]],
        "total": memories.count(with_children=with_children),
        "filtered": len(matches),
    }
    if state.version.is_v012:
        answer["truncated"] = len(matches) > limit
    if state.version.is_v0123:
        warnings = validation.unknown_field_warnings(body, ("agent_id", "filter", "limit"))
        if isinstance(body.get("filter"), dict):
            warnings += validation.unknown_field_warnings(
                body["filter"], validation.FILTER_FIELDS, "filter."
            )
        if warnings:
            answer["warnings"] = warnings
    return answer


def matching_ids(memories: AgentMemories, predicates: Mapping[str, Any]) -> list[str]:
    """Return the ids of the memories that match a filter, without derived memories."""
    return [
        record.id
        for record in memories.records.values()
        if record.parent is None and validation.matches_filter(record.doc, predicates)
    ]


def rank_memories(
    state: State, memories: AgentMemories, body: Mapping[str, Any], top_k: int
) -> list[dict[str, Any]]:
    """Return the `top_k` best matches of a text query with their scores, best first."""
    query = word_counts(validation.check_text(body, "query"))
    if body.get("top_k") is not None:
        top_k = validation.check_integer(body["top_k"], "top_k", 1)
    candidates = _candidates(state, memories, body)
    scored = _bm25_scores(query, candidates)
    scored.sort(key=lambda pair: (-pair[0], memories.shuffle_key(pair[1].id)))
    return [
        {
            "memory": record.doc,
            "score": score,
            "rank_score": score,
            "text_score": score,
            "weighted_score": score * record.doc["importance"],
        }
        for score, record in scored[:top_k]
    ]


def _candidates(state: State, memories: AgentMemories, body: Mapping[str, Any]) -> list[Record]:
    predicates: dict[str, Any] = {}
    if body.get("memory_type") is not None:
        predicates["memory_type"] = validation.check_memory_type(body["memory_type"])
    if body.get("min_importance") is not None:
        predicates["min_importance"] = validation.check_importance(
            body["min_importance"], "min_importance"
        )
    if body.get("session_id") is not None:
        predicates["session_id"] = validation.check_text(body, "session_id")
    if body.get("since") is not None:
        predicates["created_after"] = validation.check_moment(body["since"], "since")
    if body.get("until") is not None:
        predicates["created_before"] = validation.check_moment(body["until"], "until")
    # Unlike in a filter, one common tag is enough.
    wanted = None
    if body.get("tags") is not None:
        wanted = set(validation.check_tags(body["tags"], for_writing=False))
    with_children = state.modes.derived_children != "none"
    return [
        record
        for record in memories.records.values()
        if (with_children or record.parent is None)
        and validation.matches_filter(record.doc, predicates)
        and (not wanted or wanted & set(record.doc["tags"]))
    ]


def _bm25_scores(query: Counter[str], candidates: Iterable[Record]) -> list[tuple[float, Record]]:
    """Return (score, record) of each match: BM25 with k1=1.2 and b=0.75, scaled to 0..1."""
    counted = [(record, word_counts(record.doc["content"])) for record in candidates]
    if not counted:
        return []
    frequency = Counter(word for _, counts in counted for word in query if word in counts)
    mean = sum(sum(counts.values()) for _, counts in counted) / len(counted) or 1.0
    raw: list[tuple[float, Record]] = []
    for record, counts in counted:
        length = sum(counts.values())
        total = 0.0
        for word in query:
            if counts[word]:
                rarity = math.log(
                    1 + (len(counted) - frequency[word] + 0.5) / (frequency[word] + 0.5)
                )
                weight = counts[word] * 2.2 / (counts[word] + 1.2 * (0.25 + 0.75 * length / mean))
                total += rarity * weight
        if total > 0:
            raw.append((total, record))
    best = max((score for score, _ in raw), default=1.0)
    return [(round(score / best, 6), record) for score, record in raw]


def recall(state: State, agent_id: str, memories: AgentMemories, body: Any) -> dict[str, Any]:
    """Answer a recall; count the access, extend the expiry and publish an event for each match."""
    validation.check_text(body, "query")
    if body.get("rerank_candidates") is not None:
        validation.check_integer(body["rerank_candidates"], "rerank_candidates", 1)
    items = rank_memories(state, memories, body, 5)
    for item in items:
        _note_access(state, agent_id, memories.records[item["memory"]["id"]])
    candidates = memories.count(with_children=False)
    report: dict[str, Any] = {"applied": bool(items), "candidates": candidates}
    if not candidates:
        report["skipped"] = "no_candidates"
    answer: dict[str, Any] = {
        "memories": items,
        "query_embedding_time_ms": 1,
        "search_time_ms": 1,
        "rerank": {"applied": bool(items), "model": "lexical"},
        "rerank_report": report,
    }
    if body.get("include_associated"):
        answer["associated_memories"] = []
    if state.version.is_v0123:
        warnings = validation.unknown_field_warnings(body, validation.RECALL_FIELDS)
        if warnings:
            answer["warnings"] = warnings
    return answer


def _note_access(state: State, agent_id: str, record: Record) -> None:
    now = state.clock.now()
    record.doc["access_count"] += 1
    record.doc["last_accessed_at"] = int(now)
    if record.expires is not None and not record.explicit_expiry:
        policy = state.policy(namespace_of(agent_id))
        record.expires += (
            policy["spaced_repetition_factor"] * policy["spaced_repetition_base_interval_seconds"]
        )
        state.schedule_expiry(agent_id, record)
    # Stale memories may contain a record that was deleted since; do not save it again.
    current = state.agents.get(agent_id)
    if current is not None and current.records.get(record.id) is record:
        state.save(agent_id, record)
    state.events.publish(
        "recalled", agent_id, memory_id=record.id, importance=record.doc["importance"]
    )


def agent_totals(state: State, agent_id: str, memories: AgentMemories) -> dict[str, Any]:
    """Return the totals of an agent: memories, sessions, types and times."""
    with_children = state.modes.derived_children == "leak"
    docs = [record.doc for record in memories.newest(with_children=with_children)]
    sessions = [session for session in state.sessions.values() if session["agent_id"] == agent_id]
    answer: dict[str, Any] = {
        "agent_id": agent_id,
        "total_memories": len(docs),
        "memories_by_type": dict(Counter(doc["memory_type"] for doc in docs)),
        "total_sessions": len(sessions),
        "active_sessions": sum("ended_at" not in session for session in sessions),
    }
    if docs:
        answer["avg_importance"] = sum(doc["importance"] for doc in docs) / len(docs)
        answer["oldest_memory_at"] = docs[-1]["created_at"]
        answer["newest_memory_at"] = docs[0]["created_at"]
    return answer


def export_file(memories: AgentMemories, form: str) -> tuple[str, bytes]:
    """Return the memories of an agent as a file: media type and bytes."""
    docs = [record.doc for record in memories.newest(with_children=False)]
    if form == "jsonl":
        lines = [orjson.dumps(doc) for doc in docs]
        return "application/x-ndjson", b"\n".join([*lines, b""]) if lines else b""
    if form == "csv":
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["id", "agent_id", "content", "memory_type", "importance", "created_at"])
        for doc in docs:
            writer.writerow(
                doc[name]
                for name in (
                    "id",
                    "agent_id",
                    "content",
                    "memory_type",
                    "importance",
                    "created_at",
                )
            )
        return "text/csv", table.getvalue().encode()
    if form == "mem0":
        mem0 = [{"memory": doc["content"], **doc} for doc in docs]
        return "application/json", orjson.dumps({"memories": mem0})
    if form == "zep":
        messages = [{"uuid": doc["id"], **doc} for doc in docs]
        return "application/json", orjson.dumps({"messages": messages})
    raise invalid(f"format must be one of {', '.join(EXPORT_FORMATS)}")
