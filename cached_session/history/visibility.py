"""What a set of operations shows: the reference that every faster path is tested against."""

from __future__ import annotations

from collections.abc import Iterable

from cached_session.history.ops import Dot, Kind, Operation, cleared_by, popped_by

__all__ = ["order", "visible"]


def order(op: Operation) -> tuple[int, str, int]:
    """The sort key of an operation; within it, items keep the order of their batch."""
    return (op.stamp, op.dot.writer, op.dot.counter)


def visible(ops: Iterable[Operation]) -> list[tuple[Dot, int, str]]:
    """Every visible item as (dot, index, payload), in the one order that all replicas share.

    An item is visible unless some pop names it or some clear covers its operation. Neither the
    order in which the operations are given nor repetition changes the answer.
    """
    known = {op.dot: op for op in ops}.values()
    refs = [popped_by(op.payloads[0]) for op in known if op.kind is Kind.POP]
    popped = {(ref.dot, ref.index) for ref in refs}
    cleared = [cleared_by(op.payloads[0]) for op in known if op.kind is Kind.CLEAR]
    return [
        (op.dot, index, payload)
        for op in sorted((op for op in known if op.kind is Kind.APPEND), key=order)
        if not any(op.dot in frontier for frontier in cleared)
        for index, payload in enumerate(op.payloads)
        if (op.dot, index) not in popped
    ]
