"""Values that a damaged row may hold and that no operation has."""

from __future__ import annotations

import pytest

from cached_session.history.clock import MAX_STAMP
from cached_session.history.frontier import INTEGER_LIMIT
from cached_session.journal.tables.row_bounds import (
    MAX_ITEMS,
    MAX_PARTS,
    check_memories,
    check_operation,
    check_placement,
    check_range,
)

OPERATION = {"writer": "w", "counter": 1, "stamp": 0, "said_ms": 0, "count": 1, "digest": "d"}
MEMORIES = {"writer": "w", "counter": 1, "index": 0, "parts": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"counter": INTEGER_LIMIT, "stamp": MAX_STAMP, "said_ms": INTEGER_LIMIT},
        {"said_ms": -INTEGER_LIMIT, "count": MAX_ITEMS, "writer": "", "digest": ""},
    ],
)
def test_an_operation_within_the_bounds_passes(changes: dict[str, object]) -> None:
    """The bounds themselves are valid."""
    check_operation(**{**OPERATION, **changes})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("writer", None),
        ("writer", b"w"),
        ("counter", 0),
        ("counter", INTEGER_LIMIT + 1),
        ("counter", 1.0),
        ("counter", True),
        ("stamp", -1),
        ("stamp", MAX_STAMP + 1),
        ("stamp", "0"),
        ("said_ms", INTEGER_LIMIT + 1),
        ("said_ms", None),
        ("count", 0),
        ("count", MAX_ITEMS + 1),
        ("digest", None),
        ("digest", 7),
    ],
)
def test_an_operation_outside_the_bounds_is_refused(name: str, value: object) -> None:
    """The error names the operation, however long its cells are."""
    with pytest.raises(ValueError, match=r"the row of operation .* is not valid"):
        check_operation(**{**OPERATION, name: value})
    with pytest.raises(ValueError, match="not valid") as caught:
        check_operation(**{**OPERATION, "counter": "x" * 1000})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "changes",
    [{}, {"index": -1}, {"index": MAX_ITEMS, "parts": MAX_PARTS, "counter": INTEGER_LIMIT}],
)
def test_memories_within_the_bounds_pass(changes: dict[str, object]) -> None:
    """The index -1 stands for the placeholder of a parked operation."""
    check_memories(**{**MEMORIES, **changes})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("writer", 1),
        ("counter", 0),
        ("counter", "1"),
        ("index", -2),
        ("index", MAX_ITEMS + 1),
        ("index", 0.0),
        ("parts", 0),
        ("parts", MAX_PARTS + 1),
        ("parts", None),
    ],
)
def test_memories_outside_the_bounds_are_refused(name: str, value: object) -> None:
    """No request is made for memories that no item can have."""
    with pytest.raises(ValueError, match=r"the row of item .* is not valid"):
        check_memories(**{**MEMORIES, name: value})


@pytest.mark.parametrize("bounds", [(1, 1), (1, INTEGER_LIMIT), (INTEGER_LIMIT, INTEGER_LIMIT)])
def test_a_range_within_the_bounds_passes(bounds: tuple[int, int]) -> None:
    """A range has at least one counter."""
    check_range(*bounds)


@pytest.mark.parametrize(
    "bounds",
    [(0, 1), (2, 1), (1, INTEGER_LIMIT + 1), ("1", 2), (1, None), (1.0, 2), (True, 2)],
)
def test_a_range_outside_the_bounds_is_refused(bounds: tuple[object, object]) -> None:
    """Neither an empty range nor one of other types gets into a set."""
    with pytest.raises(ValueError, match=r"the range of counters .* is not valid"):
        check_range(*bounds)


PLACEMENT: dict[str, object] = {
    "turn": (5, "w", 1),
    "stamp": 5,
    "branch": "",
    "key_id": "2026-11",
    "version": 2,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("turn", (6, "w", 1)),
        ("turn", (-1, "w", 1)),
        ("turn", ("5", "w", 1)),
        ("turn", (5, b"w", 1)),
        ("turn", (5, "w", 0)),
        ("turn", (5, "w", None)),
        ("branch", "a|b"),
        ("branch", None),
        ("key_id", b""),
        ("version", 0),
        ("version", 3),
        ("version", "2"),
    ],
)
def test_a_row_with_an_invalid_place_is_refused(name: str, value: object) -> None:
    """The error names the values."""
    check_placement(**PLACEMENT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is not valid"):
        check_placement(**{**PLACEMENT, name: value})  # type: ignore[arg-type]
