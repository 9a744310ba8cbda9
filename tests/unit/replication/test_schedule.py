"""The times of the next push and pull, by a clock that is a number."""

from __future__ import annotations

import math
import random

import pytest

from cached_session import SyncOptions
from cached_session.history.ids import agent_id
from cached_session.replication import schedule
from cached_session.replication.schedule import PullPlan, PullSchedule, PushSchedule

OPTIONS = SyncOptions(poll_interval=5, poll_interval_idle=60, poll_interval_listening=100)


def pulls(*sessions: str) -> PullSchedule:
    made = PullSchedule(OPTIONS, random.Random(1))
    for session_id in sessions:
        assert made.follow(session_id)
    return made


def plan_of(made: PullSchedule, session_id: str) -> PullPlan:
    plan = made.plan(session_id)
    assert plan is not None
    return plan


def pull(
    made: PullSchedule, session_id: str, now: float, *, is_news: bool = False, up: bool = False
) -> float:
    """Report a pull that takes no time; return the seconds until the next one."""
    plan = plan_of(made, session_id)
    plan.started = now
    made.pulled(session_id, plan, now, is_news=is_news, is_listening=up)
    return plan.due - now


def test_a_followed_session_is_due_immediately() -> None:
    """Unless it is being pulled. A second request to follow it changes nothing."""
    made = pulls("a", "b", "c")
    assert made.due(7.0, besides={"b"}, is_listening=False) == (["a", "c"], math.inf)
    assert not made.follow("a")


def test_pulls_that_bring_nothing_become_rare() -> None:
    """Their interval grows up to that of an idle session; news and use make it short again."""
    made = pulls("a")
    waits = [pull(made, "a", 1000.0 * number) for number in range(12)]
    assert 4.5 * 1.5 <= waits[0] <= 5.5 * 1.5
    assert all(54 <= wait <= 66 for wait in waits[-4:])
    assert 4.5 <= pull(made, "a", 20_000.0, is_news=True) <= 5.5
    for number in range(12):
        pull(made, "a", 30_000.0 + 100 * number)
    made.use("a")
    assert made.due(31_100.0, besides=(), is_listening=False) == ([], 31_105.0)


def test_an_event_stream_makes_pulls_rare() -> None:
    """With more open sessions each is polled less. Without the stream polling goes on as before."""
    made = pulls("a", "b", "c")
    assert 270 <= pull(made, "a", 0.0, up=True) <= 330
    made.use("a")
    assert made.due(10.0, besides="bc", is_listening=True)[0] == []
    made.stream_lost(20.0)
    assert made.due(25.0, besides="bc", is_listening=False)[0] == ["a"]


@pytest.mark.parametrize("sessions", ["a", "abcdefghij"])
def test_a_session_in_use_is_polled_beside_a_stream(sessions: str) -> None:
    """The stream may report nothing. The number of open sessions does not matter."""
    made = pulls(*sessions)
    for session_id in sessions:
        pull(made, session_id, 0.0, up=True)
    made.use("a")
    due, nearest = made.due(1.0, besides=(), is_listening=True)
    assert (due, nearest) == ([], schedule.LISTENING_IN_USE)
    made.use("a")
    assert made.due(2.0, besides=(), is_listening=False)[1] == OPTIONS.poll_interval


def test_a_hint_asks_for_a_pull_that_begins_after_it() -> None:
    """A pull of the same session that has begun before the hint is followed by another."""
    made = pulls("a", "b")
    assert pull(made, "a", 10.0) > 0
    assert not made.hint(agent_id("nobody's"), 11.0)
    assert not made.hint(agent_id("a"), 9.0)
    assert made.hint(agent_id("a"), 11.0)
    assert made.due(11.0, besides="b", is_listening=True)[0] == ["a"]
    plan = plan_of(made, "a")
    plan.started = 11.5
    assert made.hint(agent_id("a"), 12.0)
    made.pulled("a", plan, 13.0, is_news=True, is_listening=True)
    assert plan.due == 0.0


def test_a_hint_for_all_waits_for_a_push() -> None:
    """Until the last push of the session ends, or for one polling interval."""
    made = pulls("a", "b")
    for session_id in "ab":
        pull(made, session_id, 10.0, up=True)
    made.push_began("a")
    made.push_began("a")
    assert made.hint(None, 11.0)
    assert made.due(11.0, besides=(), is_listening=True) == (["b"], 16.0)
    assert not made.push_ended("a")
    assert made.is_pushing("a")
    assert made.push_ended("a")
    assert made.due(11.0, besides="b", is_listening=True)[0] == ["a"]


def test_a_session_that_is_opened_again_keeps_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest plans are dropped above a bound."""
    monkeypatch.setattr(schedule, "MAX_CLOSED_PLANS", 1)
    made = pulls("a", "b")
    for session_id in "ab":
        pull(made, session_id, 10.0)
        made.unfollow(session_id)
    assert list(made.plans()) == []
    assert made.last_success("a") == -math.inf
    assert made.follow("a")
    assert made.follow("b")
    assert made.due(10.0, besides=(), is_listening=False)[0] == ["a"]


def test_a_push_that_was_put_off_waits_for_its_time_or_a_write() -> None:
    """A session with nothing to send waits for a write. One that is being pushed is not due."""
    made = PushSchedule()
    assert made.due(["a", "b", "c"], 1.0, besides={"c"}) == (["a", "b"], math.inf)
    made.put_off("a", 5.0)
    made.put_off("b", math.inf)
    assert made.due(["a", "b"], 2.0, besides=()) == ([], 5.0)
    made.written()
    assert made.due(["a", "b"], 3.0, besides=())[0] == ["b"]
    assert made.due(["a", "b"], 5.0, besides=())[0] == ["a", "b"]


def test_a_running_push_does_not_count_as_the_next_one() -> None:
    """Its end sets the time of the next one. A session that was put off is due at its time."""
    made = PushSchedule()
    made.put_off("a", 5.0)
    made.put_off("b", 7.0)
    assert made.due(["a", "b"], 5.0, besides=()) == (["a"], 7.0)
    assert made.due(["a"], 6.0, besides=()) == (["a"], math.inf)


def test_a_session_without_unsent_operations_is_no_longer_put_off() -> None:
    """What is written after that is pushed at once."""
    made = PushSchedule()
    made.put_off("a", 100.0)
    assert made.due([], 1.0, besides=()) == ([], math.inf)
    assert made.due(["a"], 2.0, besides=())[0] == ["a"]
