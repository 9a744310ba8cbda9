"""The recorded conversations, repeated into one long history."""

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
    """That many items of real conversations, one after the other, again and again."""
    return list(islice(cycle(_recorded()), length))


def turns(items: list[Item]) -> list[list[Item]]:
    """The same items as an agent adds them: a question, and all that came of it."""
    batches: list[list[Item]] = []
    for item in items:
        if item.get("role") == "user" or not batches:
            batches.append([])
        batches[-1].append(item)
    return batches


def chunks(items: Sequence[Item], size: int = 1000) -> Iterable[Sequence[Item]]:
    """The same items in as few batches as is sensible: a history is made quickly with them."""
    return (items[start : start + size] for start in range(0, len(items), size))


def payload_bytes(items: Iterable[Item]) -> int:
    """What the items say, as the shortest JSON."""
    return sum(len(orjson.dumps(item)) for item in items)
