"""The order of a history: the sort key of an item.

Every replica sorts the items of a session by this key, ascending. The key follows from the item's
operation alone, so that replicas with the same operations show the same order. Items of one turn
are contiguous, because the key of the turn's head comes first. `clock` computes stamps; the SQL of
the journal sorts by columns with the same values.
"""

from __future__ import annotations

from cached_session.history.ops import Operation

__all__ = ["Position", "position"]

Position = tuple[int, str, int, int, str, int, int]
"""The sort key of an item in its session: (turn stamp, turn writer, turn counter, stamp, writer,
counter, index)."""


def position(op: Operation, index: int = 0) -> Position:
    """Return the sort key of one item of an append."""
    return (*op.turn_key, op.stamp, *op.dot, index)
