"""What reads answer: listings, filters, recall by words, statistics, export.

Every function takes the memories it reads as an argument, so a stale view reads like a fresh one.
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
from cached_session.devserver.policy import words
from cached_session.devserver.responses import invalid
from cached_session.devserver.state import State, namespace_of

DEFAULT_LISTING = 50
MAX_LISTING = 1000
MAX_SESSION_LISTING = 500
DEFAULT_FILTERED = 100
MAX_FILTERED = 1000
MAX_PREVIEW_CHARS = 10_000

EXPORT_FORMATS = ("jsonl", "csv", "mem0", "zep")


def limit_of(state: State, value: int, most: int) -> int:
    """Return a page size: above the maximum it is lowered or refused, as the modes say."""
    if value > most and state.modes.over_limit == "reject":
        raise invalid(f"limit must be at most {most}")
    return min(value, most)


def listing(state: State, known: AgentMemories, query: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one page of an agent's memories, newest first."""
    limit = validation.query_integer(query.get("limit"), "limit", DEFAULT_LISTING, 1)
    offset = validation.query_integer(query.get("offset"), "offset", 0, 0)
    limit = limit_of(state, limit, MAX_LISTING)
    derived = not state.version.is_v0122
    if state.version.is_v0122:
        derived = validation.query_flag(query.get("include_derived"), "include_derived")
    if not state.version.is_v012:
        offset = 0
    page = known.page(offset, limit, with_children=derived)
    return previews(state, [record.doc for record in page], query)


def previews(
    state: State, docs: list[dict[str, Any]], query: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Cut the contents to the preview length that the query asks for, if it does."""
    wanted = query.get("content_preview_chars")
    if wanted is None or not state.version.is_v0122:
        return docs
    chars = validation.query_integer(wanted, "content_preview_chars", 1, 1)
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


def filtered(state: State, known: AgentMemories, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the memories that pass a filter, in no meaningful order, up to the limit."""
    rule = validation.filter_object(body.get("filter"))
    limit = DEFAULT_FILTERED
    if body.get("limit") is not None:
        limit = validation.integer(body["limit"], "limit", 1)
    limit = limit_of(state, limit, MAX_FILTERED)
    leak = state.modes.derived_children == "leak"
    matches = [
        record
        for record in known.records.values()
        if (leak or record.parent is None) and validation.passes(record.doc, rule)
    ]
    # No order is documented, so none is offered; the shuffle is repeatable for a seed.
    matches.sort(key=lambda record: known.shuffle_key(record.id))
    answer: dict[str, Any] = {
        "memories": [record.doc for record in matches[:limit]],
        "total": known.count(with_children=leak),
        "filtered": len(matches),
    }
    if state.version.is_v012:
        answer["truncated"] = len(matches) > limit
    if state.version.is_v0123:
        warnings = validation.unknown_fields(body, ("agent_id", "filter", "limit"))
        if isinstance(body.get("filter"), dict):
            warnings += validation.unknown_fields(
                body["filter"], validation.FILTER_FIELDS, "filter."
            )
        if warnings:
            answer["warnings"] = warnings
    return answer


def matching_ids(known: AgentMemories, rule: Mapping[str, Any]) -> list[str]:
    """Return the ids of the memories that pass a filter, without derived ones."""
    return [
        record.id
        for record in known.records.values()
        if record.parent is None and validation.passes(record.doc, rule)
    ]


def ranked(
    state: State, known: AgentMemories, body: Mapping[str, Any], top_k: int
) -> list[dict[str, Any]]:
    """Return the best matches of a query by its words, best first, with their scores."""
    query = words(validation.text(body, "query"))
    if body.get("top_k") is not None:
        top_k = validation.integer(body["top_k"], "top_k", 1)
    candidates = _candidates(state, known, body)
    scored = _scores(query, candidates)
    scored.sort(key=lambda pair: (-pair[0], known.shuffle_key(pair[1].id)))
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


def _candidates(state: State, known: AgentMemories, body: Mapping[str, Any]) -> list[Record]:
    rule: dict[str, Any] = {}
    if body.get("memory_type") is not None:
        rule["memory_type"] = validation.memory_type(body["memory_type"])
    if body.get("min_importance") is not None:
        rule["min_importance"] = validation.importance(body["min_importance"], "min_importance")
    if body.get("session_id") is not None:
        rule["session_id"] = validation.text(body, "session_id")
    if body.get("since") is not None:
        rule["created_after"] = validation.moment(body["since"], "since")
    if body.get("until") is not None:
        rule["created_before"] = validation.moment(body["until"], "until")
    # Unlike in a filter, one common tag is enough here.
    wanted = None
    if body.get("tags") is not None:
        wanted = set(validation.tags(body["tags"], for_writing=False))
    leak = state.modes.derived_children != "none"
    return [
        record
        for record in known.records.values()
        if (leak or record.parent is None)
        and validation.passes(record.doc, rule)
        and (not wanted or wanted & set(record.doc["tags"]))
    ]


def _scores(query: Counter[str], candidates: Iterable[Record]) -> list[tuple[float, Record]]:
    """Score by BM25 with the usual constants, scaled to 0..1; only matches are returned."""
    bags = [(record, words(record.doc["content"])) for record in candidates]
    if not bags:
        return []
    holders = Counter(word for _, bag in bags for word in query if word in bag)
    mean = sum(sum(bag.values()) for _, bag in bags) / len(bags) or 1.0
    raw: list[tuple[float, Record]] = []
    for record, bag in bags:
        length = sum(bag.values())
        total = 0.0
        for word in query:
            if bag[word]:
                rarity = math.log(1 + (len(bags) - holders[word] + 0.5) / (holders[word] + 0.5))
                weight = bag[word] * 2.2 / (bag[word] + 1.2 * (0.25 + 0.75 * length / mean))
                total += rarity * weight
        if total > 0:
            raw.append((total, record))
    best = max((score for score, _ in raw), default=1.0)
    return [(round(score / best, 6), record) for score, record in raw]


def recall(state: State, agent_id: str, known: AgentMemories, body: Any) -> dict[str, Any]:
    """Answer a recall, with its side effects: access counts, longer lives, an event each."""
    validation.text(body, "query")
    if body.get("rerank_candidates") is not None:
        validation.integer(body["rerank_candidates"], "rerank_candidates", 1)
    items = ranked(state, known, body, 5)
    for item in items:
        _note_access(state, agent_id, known.records[item["memory"]["id"]])
    candidates = known.count(with_children=False)
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
        warnings = validation.unknown_fields(body, validation.RECALL_FIELDS)
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
        state.watch_expiry(agent_id, record)
    # A stale view may hold a record that is gone by now; it must not come back through this.
    current = state.agents.get(agent_id)
    if current is not None and current.records.get(record.id) is record:
        state.save(agent_id, record)
    state.events.publish(
        "recalled", agent_id, memory_id=record.id, importance=record.doc["importance"]
    )


def stats(state: State, agent_id: str, known: AgentMemories) -> dict[str, Any]:
    """Return an agent's totals."""
    leak = state.modes.derived_children == "leak"
    docs = [record.doc for record in known.newest(with_children=leak)]
    own = [session for session in state.sessions.values() if session["agent_id"] == agent_id]
    answer: dict[str, Any] = {
        "agent_id": agent_id,
        "total_memories": len(docs),
        "memories_by_type": dict(Counter(doc["memory_type"] for doc in docs)),
        "total_sessions": len(own),
        "active_sessions": sum("ended_at" not in session for session in own),
    }
    if docs:
        answer["avg_importance"] = sum(doc["importance"] for doc in docs) / len(docs)
        answer["oldest_memory_at"] = docs[-1]["created_at"]
        answer["newest_memory_at"] = docs[0]["created_at"]
    return answer


def export(known: AgentMemories, form: str) -> tuple[str, bytes]:
    """Return an agent's own memories as a file: its media type and its bytes."""
    docs = [record.doc for record in known.newest(with_children=False)]
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
        memories = [{"memory": doc["content"], **doc} for doc in docs]
        return "application/json", orjson.dumps({"memories": memories})
    if form == "zep":
        messages = [{"uuid": doc["id"], **doc} for doc in docs]
        return "application/json", orjson.dumps({"messages": messages})
    raise invalid(f"format must be one of {', '.join(EXPORT_FORMATS)}")
