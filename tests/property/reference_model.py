"""The reference model: computes the visible items and the marks from all operations, in the
simplest way.

Property tests and the simulation compare the journal, which works incrementally, with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from cached_session.history.ops import (
    Dot,
    Kind,
    Operation,
    TurnKey,
    decode_clear,
    decode_mark,
    decode_pop,
)

__all__ = ["Order", "marks", "order", "turn_of_call", "visible"]

Order = tuple[int, str, int, int, str, int]


def order(op: Operation) -> Order:
    """Return the sort key of an operation: its turn, then stamp, writer and counter. Within an
    operation, items keep the order of their batch."""
    return (*op.turn_key, op.stamp, op.dot.writer, op.dot.counter)


def visible(ops: Iterable[Operation], branch: str = "") -> list[tuple[Dot, int, str]]:
    """Return the visible items of a branch as (dot, index, payload), in the order that all replicas
    share.

    An item is visible unless a pop refers to it or a clear covers its operation. The order in which
    the operations are given, and repetitions, do not change the result.
    """
    known = {op.dot: op for op in ops}.values()
    refs = [decode_pop(op.payloads[0]) for op in known if op.kind is Kind.POP]
    popped = {(ref.dot, ref.index) for ref in refs}
    cleared = [decode_clear(op.payloads[0]) for op in known if op.kind is Kind.CLEAR]
    return [
        (op.dot, index, payload)
        for op in sorted((op for op in known if op.kind is Kind.APPEND), key=order)
        if op.branch == branch and not any(op.dot in frontier for frontier in cleared)
        for index, payload in enumerate(op.payloads)
        if (op.dot, index) not in popped
    ]


def turn_of_call(ops: Iterable[Operation], call_id: str) -> TurnKey | None:
    """Return the turn of the last visible item that makes a call with this id; None if no visible
    item makes it."""
    known = {op.dot: op for op in ops}
    for dot, _, payload in reversed(visible(known.values())):
        item = json.loads(payload)
        if item.get("type") == "function_call" and item.get("call_id") == call_id:
            return known[dot].turn_key
    return None


def marks(ops: Iterable[Operation]) -> dict[tuple[str, str], tuple[Dot, Any]]:
    """Return the winning mark of each (type, key) as (dot, value): the last in the order of (stamp,
    writer, counter). Pops and clears do not remove marks, and an encrypted mark is skipped."""
    found: dict[tuple[str, str], tuple[Dot, Any]] = {}
    readable = (op for op in ops if op.kind is Kind.MARK and not op.key_id)
    for op in sorted(readable, key=lambda op: (op.stamp, op.dot)):
        mark = decode_mark(op.payloads[0])
        found[mark.type, mark.key] = op.dot, mark.value
    return found
