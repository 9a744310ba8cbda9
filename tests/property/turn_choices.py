"""Choices of turns for the local appends of property tests, with the turn that must result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from cached_session.history.ops import Kind, Operation, TurnKey
from cached_session.history.turns import TurnChoice
from tests.property.reference_model import order, turn_of_call

__all__ = ["APPENDS", "assert_is_last_of_turn", "choose_turn"]

APPENDS = ("append", "join", "call", "answer")
"""Ways to append: open a turn, join a given turn, open a turn with a tool call, join the turn of a
call by its id."""


def choose_turn(
    how: str, number: int, applied: Sequence[Operation]
) -> tuple[TurnChoice, TurnKey | None, list[str]]:
    """Return the choice of an append, the value that `Operation.turn` must get, and the items that
    the append must contain.

    ``number`` selects the turn or the id of the call. A call id may be made again, or be answered
    without a visible call: the answer then opens a turn.
    """
    call_id = f"call-{number % 2}"
    if how == "join":
        keys = sorted({op.turn_key for op in applied if op.kind is Kind.APPEND})
        turn = keys[number % len(keys)] if keys else None
        return TurnChoice(block=turn), turn, []
    if how == "call":
        item = {"type": "function_call", "call_id": call_id, "name": "look", "arguments": "{}"}
        return TurnChoice(), None, [json.dumps(item)]
    if how == "answer":
        item = {"type": "function_call_output", "call_id": call_id, "output": "42"}
        turn = turn_of_call(applied, call_id)
        return TurnChoice(answers=(call_id,)), turn, [json.dumps(item)]
    return TurnChoice(), None, []


def assert_is_last_of_turn(op: Operation, applied: Iterable[Operation]) -> None:
    """Check that a new operation sorts after all applied ones, except those of later turns."""
    for seen in applied:
        assert (seen.stamp, seen.dot) < (op.stamp, op.dot)
        if op.turn is None or seen.turn_key <= op.turn:
            assert order(seen) < order(op)
