"""Who gets a claimed item, and how a claim without an answer ends."""

from __future__ import annotations

import pytest

from cached_session import SyncOptions
from cached_session.history.ops import Dot, ItemRef
from cached_session.journal.tables.claims import Claim, ClaimState
from cached_session.replication.claim_rules import (
    Contest,
    Resolution,
    ResolveRules,
    has_deleted,
    judge_notes,
    may_be_live,
)

RULES = ResolveRules(pop_patience_ms=600_000, lag_patience_ms=10_000, is_eager=False)
EAGER = ResolveRules(pop_patience_ms=600_000, lag_patience_ms=10_000, is_eager=True)


def claim(
    state: ClaimState = ClaimState.ASKED, *, is_visible: bool = True, is_parked: bool = False
) -> Claim:
    return Claim(
        ItemRef(Dot("w", 1), 0, 1),
        (b"", 0),
        is_ours=False,
        is_in_flight=False,
        is_parked=is_parked,
        state=state,
        claimer="me",
        is_visible=is_visible,
    )


@pytest.mark.parametrize(
    ("claimers", "contest"),
    [
        ({"me"}, Contest.WON),
        ({"me", "other"}, Contest.DISPUTED),
        ({"other"}, Contest.DISPUTED),
        (set(), Contest.UNKNOWN),
    ],
)
def test_only_an_own_note_alone_wins(claimers: set[str], contest: Contest) -> None:
    """The note of another device disputes the item, and a missing own note shows nothing."""
    assert judge_notes(claimers, "me") is contest


def test_an_item_is_ours_only_if_the_server_has_deleted_it() -> None:
    """Derived memories count as well. The server need not hold an operation that it has refused."""
    assert not has_deleted(0, claim())
    assert has_deleted(1, claim())
    assert has_deleted(3, claim())
    assert has_deleted(0, claim(is_parked=True))


def test_a_claim_of_this_opening_is_live_while_its_call_waits() -> None:
    """Its age does not matter."""
    for age_ms in (0, 1 << 40):
        assert may_be_live(is_own=True, is_waiting=True, age_ms=age_ms, timeout=30)
        assert not may_be_live(is_own=True, is_waiting=False, age_ms=age_ms, timeout=30)


def test_a_claim_of_another_opening_is_live_for_two_timeouts() -> None:
    """A request takes no longer. A claim from the future was made by a wrong clock."""
    ages = [-1, 0, 59_999, 60_000]
    live = [may_be_live(is_own=False, is_waiting=False, age_ms=age, timeout=30) for age in ages]
    assert live == [False, True, True, False]


@pytest.mark.parametrize("state", ClaimState)
def test_a_removed_item_is_released_without_a_lookup(state: ClaimState) -> None:
    """The pop of another device has arrived."""
    assert RULES.before_lookup(claim(state, is_visible=False), 0) is Resolution.RELEASE


def test_a_claim_that_the_server_has_not_seen_is_released() -> None:
    """Nothing was requested, so nobody has got the item through it."""
    assert RULES.before_lookup(claim(ClaimState.RESERVED), 0) is Resolution.RELEASE


def test_a_lost_claim_waits_for_the_pop_of_the_winner() -> None:
    """It is looked up when its time has passed, or by an eager call."""
    lost = claim(ClaimState.LOST)
    assert RULES.before_lookup(lost, 599_999) is Resolution.WAIT_FOR_POP
    assert RULES.before_lookup(lost, 600_000) is None
    assert RULES.before_lookup(lost, -1) is None
    assert EAGER.before_lookup(lost, 0) is None


@pytest.mark.parametrize("state", [ClaimState.ASKED, ClaimState.ABSENT, ClaimState.LOST])
def test_an_item_on_the_server_belongs_to_nobody(state: ClaimState) -> None:
    """It stays in the history, and can be popped again."""
    assert RULES.after_lookup(claim(state), 1 << 40, is_on_server=True) is Resolution.RELEASE


def test_a_lost_item_is_sent_again_when_no_pop_arrives() -> None:
    """The server has lost it, or the winner has not sent its pop yet."""
    lost = claim(ClaimState.LOST)
    assert EAGER.after_lookup(lost, 599_999, is_on_server=False) is Resolution.WAIT_FOR_POP
    assert EAGER.after_lookup(lost, 600_000, is_on_server=False) is Resolution.REQUEUE


def test_an_item_that_is_gone_is_popped_after_a_second_look() -> None:
    """One lookup is not enough: the node that answered may lag."""
    asked, absent = claim(ClaimState.ASKED), claim(ClaimState.ABSENT)
    assert RULES.after_lookup(asked, 1 << 40, is_on_server=False) is Resolution.LOOK_AGAIN
    assert RULES.after_lookup(absent, 9_999, is_on_server=False) is Resolution.LOOK_AGAIN
    assert RULES.after_lookup(absent, 10_000, is_on_server=False) is Resolution.CONFIRM
    assert RULES.after_lookup(absent, -1, is_on_server=False) is Resolution.CONFIRM


def test_one_look_is_enough_without_patience() -> None:
    """A server whose nodes do not lag needs no second look."""
    rules = ResolveRules(pop_patience_ms=0, lag_patience_ms=0, is_eager=False)
    assert rules.after_lookup(claim(), 0, is_on_server=False) is Resolution.CONFIRM


def test_the_rules_follow_the_options() -> None:
    """The options count in seconds, the rules in milliseconds."""
    options = SyncOptions(hole_patience=7, claim_patience=3)
    assert ResolveRules.of(options, is_eager=True) == ResolveRules(7000, 3000, is_eager=True)


def test_a_note_is_withdrawn_when_nobody_got_the_item_through_it() -> None:
    """The note of a winner stays."""
    withdrawn = {found for found in Resolution if found.ends_without_pop}
    assert withdrawn == {Resolution.RELEASE, Resolution.REQUEUE}
