"""The rules that decide which turn an append joins."""

from __future__ import annotations

from cached_session.history.ops import TurnKey
from cached_session.history.tool_calls import ToolBatch
from cached_session.history.turns import (
    UNANSWERED_MOST,
    OpenTurn,
    TurnChoice,
    after_append,
    after_removal,
    choose,
)

HERE = TurnKey(1 << 40, "writerwriter", 3)
THERE = TurnKey(1 << 41, "otherwriter0", 1)

QUESTION = ToolBatch(has_input=True)
CALL = ToolBatch(made=("c1",), waiting=("c1",))
OUTPUT = ToolBatch(answered=("c1",))
CALL_AND_OUTPUT = ToolBatch(made=("c1",))
ANSWER = ToolBatch(ends_with_answer=True)
STATE = ToolBatch(is_state=True)
OTHER = ToolBatch()


def test_a_block_decides_before_all_other_rules() -> None:
    """Rule 1: the contents of the batch do not matter."""
    for batch in (QUESTION, CALL, OUTPUT, ANSWER):
        chosen = choose(batch, OpenTurn(THERE, ("c1",)), in_block=True, block=HERE)
        assert chosen == TurnChoice(block=HERE)


def test_the_first_batch_of_a_block_joins_no_open_turn() -> None:
    """A block is a turn of its own, unless its first batch answers a call."""
    assert choose(ANSWER, OpenTurn(THERE), in_block=True) == TurnChoice()
    assert choose(OUTPUT, OpenTurn(THERE, ("c1",)), in_block=True) == TurnChoice(answers=("c1",))


def test_an_answered_call_is_looked_up() -> None:
    """Rule 2 applies without a current turn, and if the current turn has not made the call."""
    assert choose(OUTPUT, None) == TurnChoice(answers=("c1",))
    assert choose(OUTPUT, OpenTurn(HERE)) == TurnChoice(answers=("c1",), open=HERE)
    assert choose(OUTPUT, OpenTurn(HERE, is_open=False)) == TurnChoice(answers=("c1",))


def test_a_call_of_the_current_turn_is_preferred() -> None:
    """A model that numbers the calls of each turn uses the id again in another turn."""
    assert choose(OUTPUT, OpenTurn(HERE, ("c1",))) == TurnChoice(open=HERE)
    both = ToolBatch(answered=("c1",), has_input=True)
    assert choose(both, OpenTurn(HERE, ("c0", "c1"))) == TurnChoice(open=HERE)


def test_a_batch_without_input_joins_the_open_turn() -> None:
    """Rule 3: a batch without input joins the open turn."""
    for batch in (CALL, CALL_AND_OUTPUT, ANSWER, OTHER):
        assert choose(batch, OpenTurn(HERE)) == TurnChoice(open=HERE)
        assert choose(batch, OpenTurn(HERE, is_open=False)) == TurnChoice()


def test_input_opens_a_turn() -> None:
    """Rule 4: a batch with input opens a turn, even if another turn is open."""
    for current in (None, OpenTurn(HERE), OpenTurn(HERE, ("c1",)), OpenTurn(HERE, is_open=False)):
        assert choose(QUESTION, current) == TurnChoice()


def test_state_joins_the_last_turn() -> None:
    """State joins a turn that has its answer, too, and does not change whether the turn is open."""
    closed = OpenTurn(HERE, is_open=False)
    assert choose(STATE, None) == TurnChoice()
    assert choose(STATE, closed) == TurnChoice(open=HERE)
    assert after_append(closed, HERE, STATE) == closed
    assert after_append(closed, THERE, STATE).is_open


def test_a_turn_is_open_until_its_answer() -> None:
    """Question, call, output and answer: the answer closes the turn."""
    turn = after_append(None, HERE, QUESTION)
    assert turn == OpenTurn(HERE)
    turn = after_append(turn, HERE, CALL)
    assert turn == OpenTurn(HERE, ("c1",))
    assert after_append(turn, HERE, ANSWER) == turn, "a call is unanswered"
    turn = after_append(turn, HERE, OUTPUT)
    assert turn == OpenTurn(HERE)
    turn = after_append(turn, HERE, ANSWER)
    assert turn == OpenTurn(HERE, is_open=False)
    assert after_append(turn, HERE, OUTPUT) == OpenTurn(HERE), "a late output opens it again"


def test_a_batch_that_opens_and_answers_leaves_a_closed_turn() -> None:
    """A batch with a whole exchange leaves no open turn."""
    whole = ToolBatch(made=("c1",), has_input=True, ends_with_answer=True)
    assert after_append(None, HERE, whole) == OpenTurn(HERE, is_open=False)


def test_another_turn_becomes_the_current_one() -> None:
    """The unanswered calls of the previous turn do not count for the new turn."""
    assert after_append(OpenTurn(HERE, ("c0",)), THERE, CALL) == OpenTurn(THERE, ("c1",))


def test_a_pop_opens_the_turn_of_its_item() -> None:
    """A corrected answer or output joins the turn of the popped item."""
    closed = OpenTurn(HERE, is_open=False)
    assert after_removal(closed, HERE, ANSWER) == OpenTurn(HERE)
    assert after_removal(closed, HERE, OUTPUT) == OpenTurn(HERE, ("c1",))
    assert after_removal(OpenTurn(HERE, ("c1",)), HERE, CALL) == OpenTurn(HERE)
    assert after_removal(OpenTurn(HERE, ("c0",)), THERE, OUTPUT) == OpenTurn(THERE, ("c1",))
    assert after_removal(None, THERE, ANSWER) == OpenTurn(THERE)
    assert after_removal(closed, HERE, STATE) == closed


def test_the_unanswered_calls_of_a_turn_are_bounded() -> None:
    """The newest unanswered calls are kept."""
    many = tuple(map(str, range(2 * UNANSWERED_MOST)))
    turn = after_append(None, HERE, ToolBatch(made=many, waiting=many))
    assert turn.unanswered == many[UNANSWERED_MOST:]
    turn = after_append(turn, HERE, CALL)
    assert turn.unanswered == (*many[UNANSWERED_MOST + 1 :], "c1")
