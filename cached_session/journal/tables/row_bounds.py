"""Checks of values in rows that a peer sent or that may be damaged."""

from __future__ import annotations

from collections.abc import Sequence

from cached_session.history.clock import MAX_STAMP
from cached_session.history.frontier import INTEGER_LIMIT
from cached_session.history.ops import is_id

__all__ = [
    "MAX_ITEMS",
    "MAX_PARTS",
    "check_memories",
    "check_operation",
    "check_placement",
    "check_range",
]

MAX_ITEMS = 1 << 24
"""Maximum number of items of one batch. The JSON texts of more items would take gigabytes."""
MAX_PARTS = 1 << 20
"""Maximum number of parts of one item. More parts would take gigabytes."""


def check_memories(writer: object, counter: object, index: object, parts: object) -> None:
    """Check the values from which the ids of an item's memories are computed.

    Raises:
        ValueError: no item can have these values.
    """
    if not (
        isinstance(writer, str)
        and type(counter) is type(index) is type(parts) is int
        and 1 <= counter <= INTEGER_LIMIT
        and -1 <= index <= MAX_ITEMS
        and 1 <= parts <= MAX_PARTS
    ):
        raise ValueError(f"the row of item {index!r:.80} of {_dot(writer, counter)} is not valid")


def check_range(first: object, last: object) -> None:
    """Check a range of counters before it is added to a set. Loops over such a set end only if the
    range is valid.

    Raises:
        ValueError: no operations can have these counters.
    """
    if not (type(first) is type(last) is int and 1 <= first <= last <= INTEGER_LIMIT):
        raise ValueError(f"the range of counters {first!r:.80} to {last!r:.80} is not valid")


def check_operation(
    writer: object, counter: object, stamp: object, said_ms: object, count: object, digest: object
) -> None:
    """Check the values of a row before it is returned as an operation.

    Raises:
        ValueError: no operation can have these values.
    """
    if not (
        isinstance(writer, str)
        and isinstance(digest, str)
        and type(counter) is type(stamp) is type(said_ms) is type(count) is int
        and 1 <= counter <= INTEGER_LIMIT
        and 0 <= stamp <= MAX_STAMP
        and -INTEGER_LIMIT <= said_ms <= INTEGER_LIMIT
        and 1 <= count <= MAX_ITEMS
    ):
        raise ValueError(f"the row of operation {_dot(writer, counter)} is not valid")


def check_placement(
    turn: Sequence[object], stamp: int, branch: object, key_id: object, version: object
) -> None:
    """Check the turn, branch, key and wire version of a row before it is returned as an operation.
    Because of an invalid row, the server would refuse every push of the session.

    Raises:
        ValueError: no operation can have these values.
    """
    turn_stamp, turn_writer, turn_counter = turn
    if not (
        type(turn_stamp) is type(turn_counter) is type(version) is int
        and isinstance(turn_writer, str)
        and 0 <= turn_stamp <= stamp
        and 1 <= turn_counter <= INTEGER_LIMIT
        and 1 <= version <= 2
        and all(isinstance(text, str) and (text == "" or is_id(text)) for text in (branch, key_id))
    ):
        raise ValueError(
            f"the turn {tuple(turn)!r:.200}, the branch {branch!r:.80}, the key {key_id!r:.80} or "
            f"the version {version!r:.80} is not valid"
        )


def _dot(writer: object, counter: object) -> str:
    return f"{writer!r:.80}:{counter!r:.80}"
