"""Strict validation of what clients send; every rule is a 400 (or a warning) that names the field.

Pure functions over parsed JSON: nothing here reads state, time or configuration.
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
"""The last second (in the year 2286) that an event time may name."""

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

_OPEN_METADATA_KEYS = {"_dakera_content_date", "_dakera_lang"}

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
    """Return the JSON object of a request body; an empty body is an empty object."""
    if not body.strip():
        return {}
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid("the body is not valid JSON", details=str(error)) from None
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object")
    return value


def text(body: Mapping[str, Any], field: str) -> str:
    """Return a field that must be a string that is not empty."""
    value = body.get(field)
    if not isinstance(value, str) or not value:
        raise invalid(f"{field} is required and must be a non-empty string")
    return value


def integer(value: Any, field: str, low: int, high: int | None = None) -> int:
    """Return `value` when it is an integer within the bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(f"{field} must be an integer")
    if value < low or (high is not None and value > high):
        raise invalid(f"{field} is out of range")
    return value


def query_integer(value: str | None, field: str, default: int, low: int) -> int:
    """Return an integer of the query string."""
    if value is None:
        return default
    try:
        return integer(int(value), field, low)
    except ValueError:
        raise invalid(f"{field} must be an integer") from None


def query_flag(value: str | None, field: str) -> bool:
    """Return a true|false of the query string; absent is false."""
    if value not in (None, "true", "false"):
        raise invalid(f"{field} must be true or false")
    return value == "true"


def agent_id(value: Any, *, any_sign: bool = False) -> str:
    """Return a valid agent id; servers before 0.12.2 publish no rule for its signs."""
    if not isinstance(value, str) or not value:
        raise invalid("agent_id is required")
    if len(value.encode()) > MAX_AGENT_ID_BYTES:
        raise invalid(f"agent_id is longer than {MAX_AGENT_ID_BYTES} bytes")
    if not (any_sign or AGENT_ID.match(value)) or value.startswith("_dakera_"):
        raise invalid("agent_id must match ^[a-zA-Z0-9][a-zA-Z0-9_\\-.]*$")
    return value


def session_id(value: Any, *, allow_colon: bool) -> str:
    """Return a valid session id; servers before 0.12.3 refuse colons."""
    pattern = SESSION_ID if allow_colon else OLD_SESSION_ID
    if not isinstance(value, str) or not pattern.match(value):
        raise invalid(f"session_id must match ^{pattern.pattern[:-2]}$")
    if len(value.encode()) > MAX_SESSION_ID_BYTES:
        raise invalid(f"session_id is longer than {MAX_SESSION_ID_BYTES} bytes")
    return value


def memory_id(value: Any) -> str:
    """Return a memory id that a caller may choose."""
    if not isinstance(value, str) or not MEMORY_ID.match(value):
        raise invalid("id must match ^[A-Za-z0-9_.:-]{1,256}$")
    if DERIVED_ID.match(value):
        raise invalid("id has the form reserved for derived memories (mem_s + 24 hex digits)")
    return value


def memory_type(value: Any) -> str:
    """Return one of the four types."""
    if value not in MEMORY_TYPES:
        raise invalid(f"memory_type must be one of {', '.join(MEMORY_TYPES)}")
    return str(value)


def content(value: Any, *, longest: int = MAX_CONTENT_BYTES, in_bytes: bool = True) -> str:
    """Return content within the limit; `longest` is raised for one that may only shrink."""
    if not isinstance(value, str) or not value:
        raise invalid("content is required and must be a non-empty string")
    size = len(value.encode()) if in_bytes else len(value)
    if size > longest:
        unit = "bytes" if in_bytes else "characters"
        raise invalid(f"content is {size} {unit}, the limit is {MAX_CONTENT_BYTES}")
    return value


def importance(value: Any, field: str = "importance") -> float:
    """Return a number in 0..1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise invalid(f"{field} must be a number between 0 and 1")
    return float(value)


def tags(value: Any, *, for_writing: bool = True) -> list[str]:
    """Return a list of strings; a written one may not carry the curator's mark."""
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise invalid("tags must be a list of strings")
    if for_writing and "dakera-curated" in value:
        raise invalid("tags: dakera-curated is reserved")
    return value


def metadata(value: Any, *, max_bytes: int | None) -> dict[str, Any]:
    """Return metadata without reserved keys and within the field limit."""
    if not isinstance(value, dict):
        raise invalid("metadata must be an object")
    if len(value) > MAX_METADATA_FIELDS:
        raise invalid(f"metadata has more than {MAX_METADATA_FIELDS} fields")
    for key in value:
        if key.startswith("_dakera_") and key not in _OPEN_METADATA_KEYS:
            raise invalid(f"metadata: the key {key} is reserved")
    if max_bytes is not None and len(orjson.dumps(value)) > max_bytes:
        raise invalid(f"metadata is larger than {max_bytes} bytes")
    return value


def event_time(value: Any) -> int:
    """Return the Unix second of a number or an RFC 3339 text, from 1970 to 2286."""
    if isinstance(value, str):
        value = moment(value, "event_time")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid("event_time must be a number or an RFC 3339 time")
    if not 0 <= value <= LATEST_EVENT_TIME:
        raise invalid("event_time must be between 1970 and 2286")
    return int(value)


def moment(value: Any, field: str) -> float:
    """Return the Unix time of an ISO 8601 text; one without an offset is UTC."""
    if not isinstance(value, str):
        raise invalid(f"{field} must be an ISO 8601 time")
    # Python 3.10 reads neither a lower-case nor an upper-case Z.
    iso = value[:-1] + "+00:00" if value[-1:] in ("Z", "z") else value
    try:
        parsed = dt.datetime.fromisoformat(iso)
    except ValueError:
        raise invalid(f"{field} must be an ISO 8601 time") from None
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=dt.timezone.utc)
    return parsed.timestamp()


def expiry(body: Mapping[str, Any], now: float) -> float | None:
    """Return the moment the client wants the memory deleted; `expires_at` wins over a TTL."""
    ttl = body.get("ttl_seconds")
    at = body.get("expires_at")
    if ttl is not None:
        integer(ttl, "ttl_seconds", 1, MAX_TTL_SECONDS)
    if at is not None:
        integer(at, "expires_at", 0, int(now) + MAX_TTL_SECONDS)
        return float(at)
    return now + ttl if ttl is not None else None


def language(value: Any) -> str:
    """Return a language tag."""
    if not isinstance(value, str) or not LANGUAGE.match(value):
        raise invalid("lang must be a language tag such as en or pt-BR")
    return value


def namespace_name(value: Any) -> str:
    """Return a name that a data namespace may have."""
    if not isinstance(value, str) or not NAMESPACE.match(value) or len(value) > 128:
        raise invalid("name must match ^[a-zA-Z0-9][a-zA-Z0-9_-]*$ and be at most 128 bytes")
    if value.startswith(RESERVED_PREFIXES):
        raise invalid("name starts with a reserved prefix")
    return value


def filter_object(value: Any) -> dict[str, Any]:
    """Return a valid listing filter; absent is the empty filter, which passes everything."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid("filter must be an object")
    for field in ("created_after", "created_before"):
        if value.get(field) is not None:
            integer(value[field], f"filter.{field}", 0)
    for field in ("min_importance", "max_importance"):
        if value.get(field) is not None:
            importance(value[field], f"filter.{field}")
    if value.get("tags") is not None:
        tags(value["tags"], for_writing=False)
    if value.get("memory_type") is not None:
        memory_type(value["memory_type"])
    if value.get("session_id") is not None and not isinstance(value["session_id"], str):
        raise invalid("filter.session_id must be a string")
    return {field: value[field] for field in FILTER_FIELDS if value.get(field) is not None}


def passes(doc: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    """Whether a memory passes a filter: all predicates hold, both time bounds are inclusive."""
    return (
        ("session_id" not in rule or doc.get("session_id") == rule["session_id"])
        and ("memory_type" not in rule or doc["memory_type"] == rule["memory_type"])
        and doc["importance"] >= rule.get("min_importance", 0)
        and doc["importance"] <= rule.get("max_importance", 1)
        and doc["created_at"] >= rule.get("created_after", 0)
        and doc["created_at"] <= rule.get("created_before", doc["created_at"])
        and ("tags" not in rule or set(rule["tags"]) <= set(doc["tags"]))
    )


def unknown_fields(body: Mapping[str, Any], known: Collection[str], prefix: str = "") -> list[str]:
    """Return the warnings for fields that the route ignores."""
    return [f"unknown field '{prefix}{field}' ignored" for field in body if field not in known]


def unknown_item_fields(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return one warning for each field that batch items have and the route ignores."""
    counts: dict[str, int] = {}
    for item in items:
        for field in item:
            if field not in ITEM_FIELDS:
                counts[field] = counts.get(field, 0) + 1
    return [
        f"unknown field 'memories[].{field}' ignored (in {count} items)"
        for field, count in counts.items()
    ]


def truncation(value: str) -> dict[str, Any]:
    """Return the report for content longer than the embedding model reads, or an empty one."""
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
