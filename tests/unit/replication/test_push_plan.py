"""The decisions of a push."""

from __future__ import annotations

import pytest

from cached_session.history.ops import Kind, Operation
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.replication.batch_size import BatchLimits
from cached_session.replication.push_plan import (
    DeliveryPlan,
    EncodedOperation,
    Park,
    SendGroup,
    check_placeholder,
    groups,
    kept,
)
from tests.unit.replication.fakes import CONFLICT, REFUSED, UNREACHABLE, dot, memory

WIDE = BatchLimits(1 << 30, 1 << 30)


def operation(seq: int, memories: int = 1, size: int = 10) -> EncodedOperation:
    op = Operation(dot(seq), Kind.APPEND, seq, 0, ("1",) * memories)
    numbers = range(seq * 1000, seq * 1000 + memories)
    return EncodedOperation(seq, op, [memory(n, size, operation=seq) for n in numbers])


def seqs(group: list[EncodedOperation]) -> list[int]:
    return [one.seq for one in group]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (WIDE, [[1, 2, 3, 4]]),
        (BatchLimits(20, 100), [[1, 2], [3, 4]]),
        (BatchLimits(1 << 30, 3), [[1, 2, 3], [4]]),
        (BatchLimits(1, 1), [[1], [2], [3], [4]]),
    ],
)
def test_groups_keep_the_order_and_the_limits(
    limits: BatchLimits, expected: list[list[int]]
) -> None:
    """Operations that follow each other share a request as long as both limits allow it."""
    found = groups([operation(seq) for seq in (1, 2, 3, 4)], limits)
    assert [seqs(group) for group in found] == expected


def test_a_large_operation_has_a_group_of_its_own() -> None:
    """It is not divided here, and it does not fill the group before it."""
    found = groups([operation(1), operation(2, memories=50), operation(3)], BatchLimits(100, 10))
    assert [seqs(group) for group in found] == [[1], [2], [3]]


def test_an_operation_without_memories_joins_any_group() -> None:
    """It needs no space."""
    found = groups([operation(1), operation(2, memories=0)], BatchLimits(10, 1))
    assert [seqs(group) for group in found] == [[1, 2]]
    assert groups([], WIDE) == []


def test_an_operation_is_kept_if_each_of_its_memories_is() -> None:
    """One memory that the server did not keep leaves the whole operation in the outbox."""
    group = [operation(1, memories=2), operation(2), operation(3, memories=0)]
    assert kept(group, {"m1001"}) == [2, 3]
    assert kept(group, set()) == [1, 2, 3]


@pytest.mark.parametrize("bad", [{1}, {5}, {8}, {3, 4}, set(range(1, 9))])
def test_a_refused_group_is_halved_down_to_the_operations_at_fault(bad: set[int]) -> None:
    """Those are parked, all others are sent, and the order of all of them is kept."""
    plan = DeliveryPlan([operation(seq) for seq in range(1, 9)])
    done: list[int] = []
    parked: set[int] = set()
    while (step := plan.next()) is not None:
        if isinstance(step, Park):
            assert step.error is REFUSED
            parked.add(step.operation.seq)
            done.append(step.operation.seq)
        elif bad & set(seqs(step.operations)):
            plan.refused(step, REFUSED)
        else:
            done += seqs(step.operations)
    assert done == list(range(1, 9))
    assert parked == bad


@pytest.mark.parametrize("error", [UNREACHABLE, CONFLICT, RemoteError(Verdict.BUSY, "later")])
def test_a_failure_that_is_not_a_refusal_ends_the_delivery(error: RemoteError) -> None:
    """No operation is at fault: nothing is parked or divided."""
    plan = DeliveryPlan([operation(1), operation(2)])
    step = plan.next()
    assert isinstance(step, SendGroup)
    with pytest.raises(RemoteError) as raised:
        plan.refused(step, error)
    assert raised.value is error
    assert plan.next() is None


def test_a_refused_placeholder_means_that_everything_is_refused() -> None:
    """Then no operation is at fault, and a person has to act."""
    with pytest.raises(RemoteError) as raised:
        check_placeholder(REFUSED, REFUSED)
    assert raised.value.verdict is Verdict.DENIED
    assert raised.value.scope is Scope.SESSION
    assert "refuses everything" in raised.value.reason


def test_a_placeholder_that_exists_already_is_as_good() -> None:
    """Any other failure of the placeholder goes to the caller."""
    check_placeholder(CONFLICT, REFUSED)
    with pytest.raises(RemoteError) as raised:
        check_placeholder(UNREACHABLE, REFUSED)
    assert raised.value is UNREACHABLE
