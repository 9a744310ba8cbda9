"""The reference model: computes the visible items from all operations, in the simplest way.

Property tests and the simulation compare the journal, which works incrementally, with it.
"""

from __future__ import annotations

from collections.abc import Iterable

from cached_session.history.ops import Dot, Kind, Operation, decode_clear, decode_pop

__all__ = ["order", "visible"]


def order(op: Operation) -> tuple[int, str, int]:
    """Return the sort key of an operation. Within one, items keep the order of their batch."""
    return (op.stamp, op.dot.writer, op.dot.counter)


def visible(ops: Iterable[Operation]) -> list[tuple[Dot, int, str]]:
    """Return the visible items as (dot, index, payload), in the order that all replicas share.

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
        if not any(op.dot in frontier for frontier in cleared)
        for index, payload in enumerate(op.payloads)
        if (op.dot, index) not in popped
    ]
