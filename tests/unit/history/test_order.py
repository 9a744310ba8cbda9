from __future__ import annotations

from cached_session.history.ops import Dot, Kind, Operation, TurnKey
from cached_session.history.order import position


def append(writer: str, counter: int, stamp: int, turn: TurnKey | None = None) -> Operation:
    return Operation(Dot(writer, counter), Kind.APPEND, stamp, 0, ("1", "2"), turn=turn)


def test_a_position_names_turn_operation_and_index() -> None:
    """The key of an item follows from its operation alone."""
    head = append("phonephone", 1, 10)
    assert position(head) == (10, "phonephone", 1, 10, "phonephone", 1, 0)
    answer = append("laptoplaptop", 5, 12, head.turn_key)
    assert position(answer, 1) == (10, "phonephone", 1, 12, "laptoplaptop", 5, 1)


def test_a_turn_is_contiguous() -> None:
    """A turn that began before the end of another turn comes after all of that turn."""
    first = append("phonephone", 1, 10)
    other = append("laptoplaptop", 1, 11)
    late = append("phonephone", 2, 12, first.turn_key)
    resumed = append("laptoplaptop", 2, 13, first.turn_key)
    assert sorted([resumed, other, late, first], key=position) == [first, late, resumed, other]


def test_turns_of_one_run_are_in_the_order_of_writing() -> None:
    """They share a stamp and a writer, so their counters decide."""
    ops = [append("phonephone", 1, 10)]
    ops.append(append("phonephone", 2, 10, ops[0].turn_key))
    ops.append(append("phonephone", 3, 10))
    ops.append(append("phonephone", 4, 10, ops[2].turn_key))
    assert sorted([ops[2], ops[0], ops[3], ops[1]], key=position) == ops
