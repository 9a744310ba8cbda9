"""When a session is pushed or pulled next, by a clock that is a number."""

from __future__ import annotations

import math
import random

import pytest

from cached_session import SyncOptions
from cached_session.history.ids import agent_id
from cached_session.replication import schedule
from cached_session.replication.schedule import Plan, PullSchedule, PushSchedule

OPTIONS = SyncOptions(poll_interval=5, poll_interval_idle=60, poll_interval_listening=100)


def pulls(*sessions: str) -> PullSchedule:
    made = PullSchedule(OPTIONS, random.Random(1))
    for session_id in sessions:
        assert made.follow(session_id)
    return made


def plan_of(made: PullSchedule, session_id: str) -> Plan:
    plan = made.plan(session_id)
    assert plan is not None
    return plan


def pull(
    made: PullSchedule, session_id: str, now: float, *, is_news: bool = False, up: bool = False
) -> float:
    """A pull that takes no time; seconds until the next."""
    plan = plan_of(made, session_id)
    plan.started = now
    made.pulled(session_id, plan, now, is_news=is_news, is_listening=up)
    return plan.due - now


def test_what_is_followed_is_due_at_once_and_once() -> None:
    """All of them, but for those under way."""
    made = pulls("a", "b", "c")
    assert made.due(7.0, besides={"b"}, is_listening=False) == (["a", "c"], math.inf)
    assert not made.follow("a")


def test_pulls_that_bring_nothing_become_rare() -> None:
    """Down to the pace of an idle session; news, and use, bring back the pace of use."""
    made = pulls("a")
    waits = [pull(made, "a", 1000.0 * number) for number in range(12)]
    assert 4.5 * 1.5 <= waits[0] <= 5.5 * 1.5
    assert all(54 <= wait <= 66 for wait in waits[-4:])
    assert 4.5 <= pull(made, "a", 20_000.0, is_news=True) <= 5.5
    for number in range(12):
        pull(made, "a", 30_000.0 + 100 * number)
    made.use("a")
    assert made.due(31_100.0, besides=(), is_listening=False) == ([], 31_105.0)


def test_a_stream_that_is_up_makes_pulls_rare_however_many_are_open() -> None:
    """When it is down again, polling goes on at the usual pace."""
    made = pulls("a", "b", "c")
    assert 270 <= pull(made, "a", 0.0, up=True) <= 330
    made.use("a")
    assert made.due(10.0, besides="bc", is_listening=True)[0] == []
    made.stream_lost(20.0)
    assert made.due(25.0, besides="bc", is_listening=False)[0] == ["a"]


def test_a_hint_asks_for_a_pull_that_begins_after_it() -> None:
    """Of the session that it names; one that begins before is followed by another."""
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
    """The end of the last one of that session, or as long as a poll would."""
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


def test_what_is_closed_and_opened_again_keeps_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as there are not too many of them."""
    monkeypatch.setattr(schedule, "MAX_CLOSED_PLANS", 1)
    made = pulls("a", "b")
    for session_id in "ab":
        pull(made, session_id, 10.0)
        made.unfollow(session_id)
    assert list(made.plans()) == []
    assert made.fresh("a") == -math.inf
    assert made.follow("a")
    assert made.follow("b")
    assert made.due(10.0, besides=(), is_listening=False)[0] == ["a"]


def test_a_push_that_was_put_off_waits_for_its_time_or_a_write() -> None:
    """One that had nothing to send waits for a write alone; what is under way is not begun."""
    made = PushSchedule()
    assert made.due(["a", "b", "c"], 1.0, besides={"c"}) == (["a", "b"], math.inf)
    made.put_off("a", 5.0)
    made.put_off("b", math.inf)
    assert made.due(["a", "b"], 2.0, besides=()) == ([], 5.0)
    made.written()
    assert made.due(["a", "b"], 3.0, besides=())[0] == ["b"]
    assert made.due(["a", "b"], 5.0, besides=())[0] == ["a", "b"]


def test_what_is_pushed_now_needs_no_further_look() -> None:
    """Its end says when the next one is; what waits for its time is looked at then."""
    made = PushSchedule()
    made.put_off("a", 5.0)
    made.put_off("b", 7.0)
    assert made.due(["a", "b"], 5.0, besides=()) == (["a"], 7.0)
    assert made.due(["a"], 6.0, besides=()) == (["a"], math.inf)


def test_what_has_been_sent_is_no_longer_put_off() -> None:
    """What is written after that is pushed at once."""
    made = PushSchedule()
    made.put_off("a", 100.0)
    assert made.due([], 1.0, besides=()) == ([], math.inf)
    assert made.due(["a"], 2.0, besides=())[0] == ["a"]
