"""Recorded conversations as test data: histories of any length, turns and batches."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import orjson

CONVERSATIONS = Path(__file__).parent.parent / "tests" / "data" / "airline-conversations.jsonl.gz"

Item = dict[str, Any]


@lru_cache(maxsize=1)
def _recorded() -> list[Item]:
    with gzip.open(CONVERSATIONS, "rt", encoding="utf-8") as lines:
        return [item for line in lines for item in json.loads(line)["items"]]


def history(length: int) -> list[Item]:
    """Return `length` recorded items; the recording is repeated if needed."""
    return list(islice(cycle(_recorded()), length))


def turns(items: list[Item]) -> list[list[Item]]:
    """Split items into turns, as an agent adds them: a user message and the items that follow."""
    batches: list[list[Item]] = []
    for item in items:
        if item.get("role") == "user" or not batches:
            batches.append([])
        batches[-1].append(item)
    return batches


def chunks(items: Sequence[Item], size: int = 1000) -> Iterable[Sequence[Item]]:
    """Split items into large batches, so that a history is written quickly."""
    return (items[start : start + size] for start in range(0, len(items), size))


def payload_bytes(items: Iterable[Item]) -> int:
    """Return the bytes of the items as compact JSON."""
    return sum(len(orjson.dumps(item)) for item in items)
