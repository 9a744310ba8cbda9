"""The recorded conversations, repeated into one long history."""

from __future__ import annotations

import gzip
import json
from itertools import cycle, islice
from pathlib import Path
from typing import Any

CONVERSATIONS = Path(__file__).parent.parent / "tests" / "data" / "airline-conversations.jsonl.gz"

Item = dict[str, Any]


def history(length: int) -> list[Item]:
    """That many items of real conversations, one after the other, again and again."""
    with gzip.open(CONVERSATIONS, "rt", encoding="utf-8") as lines:
        items = [item for line in lines for item in json.loads(line)["items"]]
    return list(islice(cycle(items), length))


def turns(items: list[Item]) -> list[list[Item]]:
    """The same items as an agent adds them: a question, and all that came of it."""
    batches: list[list[Item]] = []
    for item in items:
        if item.get("role") == "user" or not batches:
            batches.append([])
        batches[-1].append(item)
    return batches
