"""Random schedules: every exchange of an agent is one turn, in the same place on every replica."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cached_session.history import turns
from cached_session.history.turns import OpenTurn, TurnChoice
from tests.property.turn_model import Schedule, Violation

pytestmark = pytest.mark.promise(number=5)

SCHEDULES = 2_000
STEPS = 60
MUTANT_SCHEDULES = 200
choose = turns.choose


def run_schedules(count: int) -> None:
    """Run the first schedules; name the seed of one that fails."""
    for seed in range(count):
        try:
            Schedule(seed).run(STEPS)
        except Violation as error:
            raise Violation(f"seed {seed}: {error}") from error


def test_turns_are_whole_in_random_schedules() -> None:
    """After each step each replica shows whole turns, head first, causes before effects.

    Two exchanges run side by side over one session object; processes restart; devices pause, apply
    operations in any order, and resume a call that another device made.
    """
    run_schedules(SCHEDULES)


def _without_answers(*args: Any, **kwargs: Any) -> TurnChoice:
    chosen = choose(*args, **kwargs)
    return TurnChoice(chosen.block, (), chosen.open)


def _without_open(*args: Any, **kwargs: Any) -> TurnChoice:
    chosen = choose(*args, **kwargs)
    return TurnChoice(chosen.block, chosen.answers, None)


def _input_joins(batch: Any, current: OpenTurn | None, **kwargs: Any) -> TurnChoice:
    return choose(batch._replace(has_input=False), current, **kwargs)


@pytest.mark.parametrize("mutant", [_without_answers, _without_open, _input_joins])
def test_the_schedules_find_a_rule_that_is_missing(
    mutant: Callable[..., TurnChoice], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one of the rules some schedule fails."""
    monkeypatch.setattr(turns, "choose", mutant)
    with pytest.raises(Violation):
        run_schedules(MUTANT_SCHEDULES)
