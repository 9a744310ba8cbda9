"""What an audit sends again, explains and deletes."""

from __future__ import annotations

import pytest

from cached_session.history.ids import session_key
from cached_session.history.ops import Dot, Kind, Operation
from cached_session.history.parts import split
from cached_session.journal.tables.audit_plan import (
    AuditPlan,
    HeldOperation,
    ServerListing,
    compare,
)
from cached_session.journal.tables.outbox import Forget

KEY = session_key("talk")


def held(
    counter: int, state: str = "acked", *, is_append: bool = True, **parts: int
) -> HeldOperation:
    """Return an operation of the journal; ``p0=2``: its payload 0 has two parts."""
    counts = {int(name[1:]): count for name, count in parts.items()}
    is_acked, is_parked = state == "acked", state == "parked"
    return HeldOperation(10 * counter, Dot("w", counter), is_acked, is_parked, is_append, counts)


def plan_for(
    *operations: HeldOperation,
    parts: dict[int, dict[tuple[int, int], int]] | None = None,
    explained: tuple[int, ...] = (),
    cleared: tuple[int, ...] = (),
) -> AuditPlan:
    """Compare operations with the parts that a server lists, by counter."""
    listing = ServerListing(
        KEY,
        {Dot("w", counter): found for counter, found in (parts or {}).items()},
        {Dot("w", counter) for counter in explained},
    )
    return compare(operations, listing, lambda dot: dot.counter in cleared)


def test_a_server_that_holds_everything_leaves_nothing_to_do() -> None:
    """Operations that are not acknowledged yet are the push's business."""
    plan = plan_for(
        held(1, p0=2, p1=1), held(2, "pending", p0=1), parts={1: {(0, 0): 2, (0, 1): 2, (1, 0): 1}}
    )
    assert plan == AuditPlan()


@pytest.mark.parametrize("is_append", [True, False])
def test_a_missing_part_has_its_operation_sent_again(is_append: bool) -> None:
    """A batch is visible only if all of it is there."""
    plan = plan_for(held(1, is_append=is_append, p0=2), parts={1: {(0, 0): 2}})
    assert plan == AuditPlan(resend=[10])


def test_a_missing_operation_is_sent_again() -> None:
    """The server has lost all of it."""
    assert plan_for(held(1, p0=1)) == AuditPlan(resend=[10])


def test_an_append_whose_items_were_removed_is_not_missing() -> None:
    """Only visible items have to be there."""
    assert plan_for(held(1)) == AuditPlan()


def test_a_removed_item_that_is_there_is_deleted() -> None:
    """Any of its parts shows that it is there, and how many there may be."""
    plan = plan_for(held(1, p0=1), parts={1: {(0, 0): 1, (1, 2): 3}})
    assert plan == AuditPlan(forget=[Forget(Dot("w", 1), 1, 3)])


def test_a_pop_is_never_deleted() -> None:
    """Other devices need it to hide the item."""
    assert plan_for(held(1, is_append=False, p0=1), parts={1: {(0, 0): 1}}) == AuditPlan()


def test_a_parked_operation_is_explained() -> None:
    """Its placeholder is stored again if it is not there; parts of it are left alone."""
    assert plan_for(held(1, "parked", p0=1)) == AuditPlan(explain=[10])
    assert plan_for(held(1, "parked", p0=1), explained=(1,)) == AuditPlan()
    assert plan_for(held(1, "parked"), parts={1: {(0, 0): 1}}) == AuditPlan()


def test_the_placeholder_of_an_acknowledged_operation_is_deleted() -> None:
    """The operation was delivered after all."""
    plan = plan_for(held(1, p0=1), parts={1: {(0, 0): 1}}, explained=(1,))
    assert plan == AuditPlan(forget=[Forget(Dot("w", 1), -1, 1)])


def test_remains_of_a_pruned_operation_are_deleted() -> None:
    """The journal has no row of it, and a clear covers it."""
    plan = plan_for(parts={1: {(0, 0): 1, (2, 1): 4}, 2: {(0, 0): 1}}, cleared=(1,))
    assert plan == AuditPlan(forget=[Forget(Dot("w", 1), 0, 1), Forget(Dot("w", 1), 2, 4)])


def test_a_cleared_operation_that_has_a_row_is_not_deleted_twice() -> None:
    """Whatever its state is."""
    plan = plan_for(held(1, "pending"), parts={1: {(0, 0): 1}}, cleared=(1,))
    assert plan == AuditPlan()


def test_a_listing_leaves_damaged_parts_out() -> None:
    """A memory that does not match its seal has to be sent again."""
    op = Operation(Dot("w", 1), Kind.APPEND, 9, 9, ('"one"', '"two"'))
    good, bad = split(op, op.digest(KEY), KEY)
    bad.text = '"2"'
    listing = ServerListing(KEY)
    listing.add([good, bad], [Dot("w", 2)])
    assert listing.parts == {op.dot: {(0, 0): 1}}
    assert listing.explained == {Dot("w", 2)}
    assert len(listing) == 1
