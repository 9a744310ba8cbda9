"""Bounds on values that a peer or a damaged row may hold."""

from __future__ import annotations

from cached_session.history.clock import MAX_STAMP
from cached_session.history.frontier import INTEGER_LIMIT

__all__ = ["ITEMS_MOST", "PARTS_MOST", "check_memories", "check_operation", "check_range"]

ITEMS_MOST = 1 << 24
"""Items of one batch: as JSON texts they would be gigabytes."""


PARTS_MOST = 1 << 20
"""Parts of one item, which would be gigabytes, too."""


def check_memories(writer: object, counter: object, index: object, parts: object) -> None:
    """Before the memories of an item are named by a row.

    Raises:
        ValueError: no item has these.
    """
    if not (
        isinstance(writer, str)
        and type(counter) is type(index) is type(parts) is int
        and 1 <= counter <= INTEGER_LIMIT
        and -1 <= index <= ITEMS_MOST
        and 1 <= parts <= PARTS_MOST
    ):
        raise ValueError(f"the memories of {writer!r:.80}:{counter!r:.80} make no sense")


def check_range(first: object, last: object) -> None:
    """Check a range of counters before it is put into a set: loops over sets rely on it.

    Raises:
        ValueError: no operations have these counters.
    """
    if not (type(first) is type(last) is int and 1 <= first <= last <= INTEGER_LIMIT):
        raise ValueError(f"the counters {first!r:.80} to {last!r:.80} make no sense")


def check_operation(
    writer: object, counter: object, stamp: object, said_ms: object, count: object, digest: object
) -> None:
    """Before an operation is made of a row, and given to others.

    Raises:
        ValueError: no operation has these.
    """
    if not (
        isinstance(writer, str)
        and isinstance(digest, str)
        and type(counter) is type(stamp) is type(said_ms) is type(count) is int
        and 1 <= counter <= INTEGER_LIMIT
        and 0 <= stamp <= MAX_STAMP
        and -INTEGER_LIMIT <= said_ms <= INTEGER_LIMIT
        and 1 <= count <= ITEMS_MOST
    ):
        raise ValueError("it makes no sense")
