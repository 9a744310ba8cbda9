"""Strict validation of requests: an invalid field raises a 400 that names it, or gives a warning.

Pure functions of parsed JSON: they read no state, time or configuration. Each `check_*` function
returns the valid value.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import orjson

from cached_session.devserver.responses import invalid

MAX_CONTENT_BYTES = 100_000
MAX_METADATA_FIELDS = 100
MAX_BATCH_ITEMS = 1000
MAX_TTL_SECONDS = 100 * 365 * 86_400
MAX_AGENT_ID_BYTES = 241
MAX_SESSION_ID_BYTES = 256
MAX_IDLE_TIMEOUT_SECONDS = 2_592_000
WINDOW_TOKENS = 512
LATEST_EVENT_TIME = 9_999_999_999
"""The latest allowed event time in Unix seconds (in the year 2286)."""

MEMORY_TYPES = ("working", "episodic", "semantic", "procedural")
AGENT_PREFIX = "_dakera_agent_"

AGENT_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_\-.]*\Z")
SESSION_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_\-:.]*\Z")
OLD_SESSION_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_\-.]*\Z")
MEMORY_ID = re.compile(r"[A-Za-z0-9_.:\-]{1,256}\Z")
NAMESPACE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_\-]*\Z")
DERIVED_ID = re.compile(r"mem_s[0-9a-f]{24}\Z")
LANGUAGE = re.compile(r"[a-zA-Z]{2,8}(-[a-zA-Z0-9]{1,8})*\Z")
RESERVED_PREFIXES = ("_", "system_", "internal_", "admin_")

_UNRESERVED_METADATA_KEYS = {"_dakera_content_date", "_dakera_lang"}

ITEM_FIELDS = frozenset(
    {
        "id",
        "content",
        "memory_type",
        "importance",
        "tags",
        "session_id",
        "metadata",
        "ttl_seconds",
        "expires_at",
        "attachment_ref",
        "event_time",
        "lang",
    }
)
STORE_FIELDS = (ITEM_FIELDS - {"id"}) | {"agent_id"}
BATCH_FIELDS = frozenset({"agent_id", "memories", "lang"})
FILTER_FIELDS = frozenset(
    {
        "tags",
        "min_importance",
        "max_importance",
        "created_after",
        "created_before",
        "memory_type",
        "session_id",
    }
)
RECALL_FIELDS = frozenset(
    {
        "agent_id",
        "query",
        "top_k",
        "memory_type",
        "min_importance",
        "tags",
        "session_id",
        "since",
        "until",
        "include_associated",
        "associated_memories_cap",
        "associated_memories_depth",
        "associated_memories_min_weight",
        "routing",
        "rerank",
        "fusion",
        "vector_weight",
        "iterations",
        "neighborhood",
        "neighborhood_mode",
        "include_summaries",
        "rerank_candidates",
        "lang",
    }
)


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a request body; an empty body is an empty object."""
    if not body.strip():
        return {}
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid("the body is not valid JSON", details=str(error)) from None
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object")
    return value


def check_text(body: Mapping[str, Any], field: str) -> str:
    """Return a field that must be a non-empty string."""
    value = body.get(field)
    if not isinstance(value, str) or not value:
        raise invalid(f"{field} is required and must be a non-empty string")
    return value


def check_integer(value: Any, field: str, low: int, high: int | None = None) -> int:
    """Return `value` if it is an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(f"{field} must be an integer")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise invalid(f"{field}={value} is out of range; it must be {bounds}")
    return value


def check_query_integer(value: str | None, field: str, default: int, low: int) -> int:
    """Return an integer parameter of the query string."""
    if value is None:
        return default
    try:
        return check_integer(int(value), field, low)
    except ValueError:
        raise invalid(f"{field} must be an integer") from None


def check_query_flag(value: str | None, field: str) -> bool:
    """Return a true or false parameter of the query string; a missing parameter is false."""
    if value not in (None, "true", "false"):
        raise invalid(f"{field} must be true or false")
    return value == "true"


def check_agent_id(value: Any, *, any_characters: bool = False) -> str:
    """Return a valid agent id; servers before 0.12.2 accept any characters."""
    if not isinstance(value, str) or not value:
        raise invalid("agent_id is required")
    if len(value.encode()) > MAX_AGENT_ID_BYTES:
        raise invalid(f"agent_id is longer than {MAX_AGENT_ID_BYTES} bytes")
    if not (any_characters or AGENT_ID.match(value)) or value.startswith("_dakera_"):
        raise invalid("agent_id must match ^[a-zA-Z0-9][a-zA-Z0-9_\\-.]*$")
    return value


def check_session_id(value: Any, *, allow_colon: bool) -> str:
    """Return a valid session id; servers before 0.12.3 refuse colons."""
    pattern = SESSION_ID if allow_colon else OLD_SESSION_ID
    if not isinstance(value, str) or not pattern.match(value):
        raise invalid(f"session_id must match ^{pattern.pattern[:-2]}$")
    if len(value.encode()) > MAX_SESSION_ID_BYTES:
        raise invalid(f"session_id is longer than {MAX_SESSION_ID_BYTES} bytes")
    return value


def check_memory_id(value: Any) -> str:
    """Return a memory id that a client may choose."""
    if not isinstance(value, str) or not MEMORY_ID.match(value):
        raise invalid("id must match ^[A-Za-z0-9_.:-]{1,256}$")
    if DERIVED_ID.match(value):
        raise invalid("id has the form reserved for derived memories (mem_s + 24 hex digits)")
    return value


def check_memory_type(value: Any) -> str:
    """Return a valid memory type: one of `MEMORY_TYPES`."""
    if value not in MEMORY_TYPES:
        raise invalid(f"memory_type must be one of {', '.join(MEMORY_TYPES)}")
    return str(value)


def check_content(value: Any, *, longest: int = MAX_CONTENT_BYTES, in_bytes: bool = True) -> str:
    """Return non-empty content of at most `longest` bytes, or characters unless `in_bytes`."""
    if not isinstance(value, str) or not value:
        raise invalid("content is required and must be a non-empty string")
    size = len(value.encode()) if in_bytes else len(value)
    if size > longest:
        unit = "bytes" if in_bytes else "characters"
        raise invalid(f"content is {size} {unit}; the limit is {MAX_CONTENT_BYTES}")
    return value


def check_importance(value: Any, field: str = "importance") -> float:
    """Return a valid importance: a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise invalid(f"{field} must be a number between 0 and 1")
    return float(value)


def check_tags(value: Any, *, for_writing: bool = True) -> list[str]:
    """Return a list of strings; clients may not write the reserved tag `dakera-curated`."""
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise invalid("tags must be a list of strings")
    if for_writing and "dakera-curated" in value:
        raise invalid("tags: the tag dakera-curated is reserved")
    return value


def check_metadata(value: Any, *, max_bytes: int | None) -> dict[str, Any]:
    """Return metadata without reserved keys and within the limits of fields and bytes."""
    if not isinstance(value, dict):
        raise invalid("metadata must be an object")
    if len(value) > MAX_METADATA_FIELDS:
        raise invalid(f"metadata has more than {MAX_METADATA_FIELDS} fields")
    for key in value:
        if key.startswith("_dakera_") and key not in _UNRESERVED_METADATA_KEYS:
            raise invalid(f"metadata: the key {key} is reserved")
    if max_bytes is not None and len(orjson.dumps(value)) > max_bytes:
        raise invalid(f"metadata is larger than {max_bytes} bytes")
    return value


def check_event_time(value: Any) -> int:
    """Return the Unix second of a number or an RFC 3339 string, from 1970 to 2286."""
    if isinstance(value, str):
        value = check_moment(value, "event_time")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid("event_time must be a number or an RFC 3339 time")
    if not 0 <= value <= LATEST_EVENT_TIME:
        raise invalid("event_time must be between 1970 and 2286")
    return int(value)


def check_moment(value: Any, field: str) -> float:
    """Return the Unix time of an ISO 8601 string; without an offset it is UTC."""
    if not isinstance(value, str):
        raise invalid(f"{field} must be an ISO 8601 time")
    # `fromisoformat` of Python 3.10 does not accept the suffix Z.
    iso = value[:-1] + "+00:00" if value[-1:] in ("Z", "z") else value
    try:
        parsed = dt.datetime.fromisoformat(iso)
    except ValueError:
        raise invalid(f"{field} must be an ISO 8601 time") from None
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=dt.timezone.utc)
    return parsed.timestamp()


def check_expiry(body: Mapping[str, Any], now: float) -> float | None:
    """Return the requested Unix time of expiry, if any; `expires_at` overrides `ttl_seconds`."""
    ttl = body.get("ttl_seconds")
    at = body.get("expires_at")
    if ttl is not None:
        check_integer(ttl, "ttl_seconds", 1, MAX_TTL_SECONDS)
    if at is not None:
        check_integer(at, "expires_at", 0, int(now) + MAX_TTL_SECONDS)
        return float(at)
    return now + ttl if ttl is not None else None


def check_language(value: Any) -> str:
    """Return a language tag such as `pt-BR`."""
    if not isinstance(value, str) or not LANGUAGE.match(value):
        raise invalid("lang must be a language tag such as en or pt-BR")
    return value


def check_namespace_name(value: Any) -> str:
    """Return a valid name of a data namespace."""
    if not isinstance(value, str) or not NAMESPACE.match(value) or len(value) > 128:
        raise invalid("name must match ^[a-zA-Z0-9][a-zA-Z0-9_-]*$ and be at most 128 bytes")
    if value.startswith(RESERVED_PREFIXES):
        raise invalid(f"name must not start with one of {', '.join(RESERVED_PREFIXES)}")
    return value


def check_filter_object(value: Any) -> dict[str, Any]:
    """Return the predicates of a filter; a missing or empty filter matches every memory."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid("filter must be an object")
    for field in ("created_after", "created_before"):
        if value.get(field) is not None:
            check_integer(value[field], f"filter.{field}", 0)
    for field in ("min_importance", "max_importance"):
        if value.get(field) is not None:
            check_importance(value[field], f"filter.{field}")
    if value.get("tags") is not None:
        check_tags(value["tags"], for_writing=False)
    if value.get("memory_type") is not None:
        check_memory_type(value["memory_type"])
    if value.get("session_id") is not None and not isinstance(value["session_id"], str):
        raise invalid("filter.session_id must be a string")
    return {field: value[field] for field in FILTER_FIELDS if value.get(field) is not None}


def matches_filter(doc: Mapping[str, Any], predicates: Mapping[str, Any]) -> bool:
    """Return whether a memory matches all predicates; both time bounds are inclusive."""
    return (
        ("session_id" not in predicates or doc.get("session_id") == predicates["session_id"])
        and ("memory_type" not in predicates or doc["memory_type"] == predicates["memory_type"])
        and doc["importance"] >= predicates.get("min_importance", 0)
        and doc["importance"] <= predicates.get("max_importance", 1)
        and doc["created_at"] >= predicates.get("created_after", 0)
        and doc["created_at"] <= predicates.get("created_before", doc["created_at"])
        and ("tags" not in predicates or set(predicates["tags"]) <= set(doc["tags"]))
    )


def unknown_field_warnings(
    body: Mapping[str, Any], known: Collection[str], prefix: str = ""
) -> list[str]:
    """Return a warning for each field of a body that the route ignores."""
    return [f"unknown field '{prefix}{field}' ignored" for field in body if field not in known]


def unknown_item_field_warnings(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a warning for each ignored field of batch items, with the number of such items."""
    counts: dict[str, int] = {}
    for item in items:
        for field in item:
            if field not in ITEM_FIELDS:
                counts[field] = counts.get(field, 0) + 1
    return [
        f"unknown field 'memories[].{field}' ignored (in {count} items)"
        for field, count in counts.items()
    ]


def truncation_report(value: str) -> dict[str, Any]:
    """Return a report if content exceeds the embedding model's window, else an empty object."""
    tokens = max(len(value) // 4, len(value.split()))
    if tokens <= WINDOW_TOKENS:
        return {}
    return {
        "truncated": True,
        "content_tokens": tokens,
        "embedded_tokens": WINDOW_TOKENS,
        "max_tokens": WINDOW_TOKENS,
        "windows": 0,
        "tokens_estimated": True,
    }
