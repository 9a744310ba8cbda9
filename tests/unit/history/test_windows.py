"""Windows: a model accepts what they keep, and they keep as much as fits."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cached_session.history.windows import drop_orphans, fit

Turns = list[list[dict[str, Any]]]


def user(text: str = "q") -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str = "a") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def call(name: object) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"{name}", "name": "f", "arguments": "{}"}


def output(name: object) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"{name}", "output": "x"}


def reasoning(name: object) -> dict[str, Any]:
    return {"type": "reasoning", "id": f"r{name}", "summary": []}


def one(_: object) -> int:
    return 1


@st.composite
def histories(draw: st.DrawFn) -> Turns:
    """Return the turns of an agent with tools and reasoning, oldest first."""
    turns = []
    for number in range(draw(st.integers(0, 5))):
        turn = [user(f"{number}")]
        for step in range(draw(st.integers(0, 3))):
            if draw(st.booleans()):
                turn.append(reasoning(f"{number}.{step}"))
            names = [f"{number}.{step}.{at}" for at in range(draw(st.integers(1, 3)))]
            turn += map(call, names)
            turn += map(output, draw(st.permutations(names)))
        if draw(st.booleans()):
            if draw(st.booleans()):
                turn.append(reasoning(f"{number}.end"))
            turn.append(assistant(f"{number}"))
        turns.append(turn)
    return turns


LIMITS = st.none() | st.integers(1, 20)


@given(turns=histories(), items=LIMITS, most=LIMITS, tokens=LIMITS)
def test_a_window_is_acceptable_and_as_large_as_it_can_be(
    turns: Turns, items: int | None, most: int | None, tokens: int | None
) -> None:
    """Within the limits, no output is without its call and no item without its reasoning. Whole
    turns are kept from the end, as many as fit."""
    whole = [item for turn in turns for item in turn]
    found = fit(reversed(turns), most_items=items, most_turns=most, most_tokens=tokens, count=one)
    assert len(found) <= min(items or 999, tokens or 999)
    made = {item["call_id"] for item in found if item.get("type") == "function_call"}
    assert all(
        item["call_id"] in made for item in found if item.get("type") == "function_call_output"
    )
    for item in found[:1]:
        before = whole.index(item) - 1
        assert before < 0 or whole[before].get("type") != "reasoning"
    fitting: list[list[dict[str, Any]]] = []
    for turn in reversed(turns):
        size = sum(map(len, fitting)) + len(turn)
        if size > min(items or 999, tokens or 999) or len(fitting) >= (most or 999):
            break
        fitting.insert(0, turn)
    if fitting or not turns:
        assert found == [item for turn in fitting for item in turn]
    else:
        last = iter(turns[-1])
        assert all(item in last for item in found), "items of the last turn, in their order"


def test_the_end_of_a_long_turn_is_kept() -> None:
    """An item loses its place with its reasoning, and an output with its call."""
    turn = [user(), reasoning(1), call(1), output(1), reasoning(2), call(2), output(2), assistant()]
    sizes = {items: fit([turn], most_items=items, count=one) for items in range(1, len(turn) + 1)}
    end = turn[-1:]
    assert sizes[1] == sizes[2] == sizes[3] == end
    assert sizes[4] == sizes[5] == sizes[6] == turn[4:]
    assert sizes[7] == turn[1:]
    assert sizes[8] == turn


def test_only_answers_without_their_call_are_dropped() -> None:
    """Also those of parallel calls, and chat messages."""
    chat = {"role": "tool", "tool_call_id": "c", "content": "x"}
    asks = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function"}], "content": None}
    assert drop_orphans([chat, user()]) == [user()]
    assert drop_orphans([asks, chat, user()]) == [asks, chat, user()]
    assert drop_orphans([call(2), output(1), output(2)]) == [call(2), output(2)]
    assert drop_orphans([]) == []


def test_turns_behind_the_window_are_not_read() -> None:
    """The cost grows with the window, not with the history."""

    def turns() -> Any:
        yield [user("3")]
        yield [user("2")]
        raise AssertionError("an older turn was read")

    assert fit(turns(), most_items=1, count=one) == [user("3")]
    assert fit(turns(), most_turns=2, count=one) == [user("2"), user("3")]
