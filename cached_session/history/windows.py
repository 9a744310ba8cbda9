"""The items of a history that fit a window, chosen so that a model accepts them.

A model refuses the output of a tool without its call, and an item without the reasoning that
precedes it. The functions are pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cached_session.history.tool_calls import read_batch

__all__ = ["drop_orphans", "fit"]


def fit(
    turns: Iterable[Sequence[Any]],
    *,
    most_items: int | None = None,
    most_turns: int | None = None,
    most_tokens: int | None = None,
    count: Callable[[Any], int],
) -> list[Any]:
    """Return the latest items within these limits (None: no limit), oldest first.

    Whole turns are kept. If the latest turn alone exceeds a limit, the items at its end are kept.

    Args:
        turns: the items of each turn in their order, the latest turn first. Only the turns that
            are returned, and the next one, are read.
        count: returns the number of tokens of an item.
    """
    kept: list[Sequence[Any]] = []
    items = tokens = 0
    for turn in turns:
        items += len(turn)
        tokens += 0 if most_tokens is None else sum(map(count, turn))
        if _exceeds(items, most_items) or _exceeds(tokens, most_tokens):
            if not kept:
                kept.append(_end_of(turn, most_items, most_tokens, count))
            break
        kept.append(turn)
        if most_turns is not None and len(kept) >= most_turns:
            break
    return drop_orphans([item for turn in reversed(kept) for item in turn])


def _end_of(
    turn: Sequence[Any],
    most_items: int | None,
    most_tokens: int | None,
    count: Callable[[Any], int],
) -> Sequence[Any]:
    """Return the items at the end of a turn that fit. Leave out an item whose reasoning is cut
    off."""
    start, tokens = len(turn), 0
    while start:
        tokens += 0 if most_tokens is None else count(turn[start - 1])
        if _exceeds(len(turn) - start + 1, most_items) or _exceeds(tokens, most_tokens):
            break
        start -= 1
    while 0 < start < len(turn) and _is_reasoning(turn[start - 1]):
        start += 1
    return turn[start:]


def _exceeds(number: int, most: int | None) -> bool:
    return most is not None and number > most


def _is_reasoning(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "reasoning"


def drop_orphans(items: list[Any]) -> list[Any]:
    """Return the items without answers of tool calls that are not among them."""
    if not any(map(_may_answer, items)):
        return items
    made: set[str] = set()
    kept = []
    for item in items:
        batch = read_batch([item])
        if made.issuperset(batch.answered):
            made.update(batch.made)
            kept.append(item)
    return kept


def _may_answer(item: Any) -> bool:
    """Return False for the messages of users and models, which most items are."""
    return not isinstance(item, dict) or not (
        isinstance(item.get("content"), str) and item.get("role") in ("user", "assistant")
    )
