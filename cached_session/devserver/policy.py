"""Memory policies: their defaults and validation, TTL, decay curves and text similarity.

All functions are pure: they do not read the clock, because the caller passes the age of a memory.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from cached_session.devserver.responses import invalid

DEFAULT_POLICY: dict[str, Any] = {
    "working_ttl_seconds": 14_400,
    "episodic_ttl_seconds": 2_592_000,
    "semantic_ttl_seconds": 31_536_000,
    "procedural_ttl_seconds": 63_072_000,
    "working_decay": "exponential",
    "episodic_decay": "power_law",
    "semantic_decay": "logarithmic",
    "procedural_decay": "flat",
    "spaced_repetition_factor": 1.0,
    "spaced_repetition_base_interval_seconds": 86_400,
    "consolidation_enabled": False,
    "consolidation_threshold": 0.92,
    "consolidation_interval_hours": 24,
    "consolidated_count": 0,
    "rate_limit_enabled": False,
    "rate_limit_stores_per_minute": None,
    "rate_limit_recalls_per_minute": None,
    "dedup_on_store": False,
    "dedup_threshold": 0.92,
}
"""The policy of a namespace that was not configured."""

DECAY_CURVES = ("exponential", "power_law", "logarithmic", "linear", "step", "flat")

DEFAULT_DECAY: dict[str, Any] = {
    "strategy": "exponential",
    "half_life_hours": 168.0,
    "min_importance": 0.05,
}
"""Settings of decay: a memory whose importance falls below the minimum is deleted."""

_WORD = re.compile(r"\w+")


def checked_policy(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the policy that a PUT stores: the defaults, overridden by the fields of the body."""
    policy = dict(DEFAULT_POLICY)
    for field, value in body.items():
        if field not in policy or field == "consolidated_count":
            continue
        policy[field] = _checked_field(field, value)
    return policy


def _checked_field(field: str, value: Any) -> Any:
    if field.endswith("_decay"):
        if value not in DECAY_CURVES:
            raise invalid(f"{field} must be one of {', '.join(DECAY_CURVES)}")
        return value
    if isinstance(DEFAULT_POLICY[field], bool):
        if not isinstance(value, bool):
            raise invalid(f"{field} must be true or false")
        return value
    optional = field.endswith("_ttl_seconds") or field.startswith("rate_limit_")
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise invalid(f"{field} must be a number that is not negative")
    return value


def ttl_of(policy: Mapping[str, Any], memory_type: str) -> float | None:
    """Return the seconds until a memory of this type expires by policy; None for never."""
    ttl = policy[f"{memory_type}_ttl_seconds"]
    return None if ttl is None else float(ttl)


def decayed_importance(
    curve: str, importance: float, age_seconds: float, half_life_hours: float
) -> float:
    """Return the importance after `age_seconds` on a decay curve."""
    age = max(0.0, age_seconds) / 3600 / half_life_hours
    if curve == "exponential":
        return float(importance * 0.5**age)
    if curve == "power_law":
        return importance / (1 + age)
    if curve == "logarithmic":
        return importance / (1 + math.log1p(age))
    if curve == "linear":
        return max(0.0, importance * (1 - age / 2))
    if curve == "step":
        return float(importance * 0.5 ** math.floor(age))
    return importance


@lru_cache(maxsize=65_536)
def word_counts(content: str) -> Counter[str]:
    """Return the count of each word in lower case. The counts are used instead of an embedding."""
    return Counter(_WORD.findall(content.lower()))


def similarity(one: Counter[str], other: Counter[str]) -> float:
    """Return the cosine similarity of two word counts; two empty counts have similarity 1.0."""
    if one == other:
        return 1.0
    dot = sum(count * other[word] for word, count in one.items())
    if not dot:
        return 0.0
    size = math.sqrt(sum(c * c for c in one.values()) * sum(c * c for c in other.values()))
    return dot / size
