"""The steps of a store."""

from __future__ import annotations

import pytest

from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.wire import EncodedMemory
from cached_session.replication.batch_size import BatchLimits
from cached_session.replication.store_plan import (
    SAMPLES,
    Fetch,
    ListNewest,
    Send,
    StorePlan,
    batches,
)
from tests.unit.replication.fakes import CONFLICT, REFUSED, UNREACHABLE, memory


class Server:
    """The ids on a server that answers the steps of a plan."""

    def __init__(self, *held: str, names: bool = True, keeps: bool = True) -> None:
        self.held = set(held)
        self.names = names
        self.keeps = keeps
        self.steps: list[str] = []

    def run(self, plan: StorePlan, *, refuses: str = "", conflicts: bool = False) -> set[str]:
        """Answer all steps; refuse requests with one id, or those with ids that are held."""
        while (step := plan.next()) is not None:
            if isinstance(step, Send):
                ids = [memory.id for memory in step.memories]
                self.steps.append(f"send {len(ids)}")
                if refuses in ids:
                    plan.refused(step, REFUSED)
                elif conflicts and self.held & set(ids):
                    plan.refused(step, CONFLICT)
                else:
                    self.held |= set(ids) if self.keeps else set()
                    plan.sent(step, self.held & set(ids) if self.names else ())
            elif isinstance(step, ListNewest):
                self.steps.append(f"list {len(step.memories)}")
                plan.listed(step, {m.id for m in step.memories} & self.held)
            elif isinstance(step, Fetch):
                self.steps.append("fetch")
                plan.fetched(step, is_held=step.memory.id in self.held)
        return plan.unkept


def several(count: int, operation: int | None = None) -> list[EncodedMemory]:
    return [memory(number, operation=operation) for number in range(count)]


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        (BatchLimits(1000, 1000), [7]),
        (BatchLimits(30, 1000), [3, 3, 1]),
        (BatchLimits(1000, 2), [2, 2, 2, 1]),
        (BatchLimits(1, 1000), [1] * 7),
    ],
)
def test_batches_keep_the_order_and_the_limits(limits: BatchLimits, sizes: list[int]) -> None:
    """No request has more bytes or memories than allowed, unless one memory alone has."""
    found = batches(several(7), limits)
    assert [len(batch) for batch in found] == sizes
    assert [one.id for batch in found for one in batch] == [one.id for one in several(7)]


def test_a_confirmed_batch_takes_one_request() -> None:
    """An answer that names every id needs no verification."""
    server = Server()
    assert server.run(StorePlan(several(9))) == set()
    assert server.steps == ["send 9"]


def test_a_few_unconfirmed_memories_are_fetched() -> None:
    """Those that the server does not hold are reported as not kept."""
    server = Server("m1", names=False, keeps=False)
    assert server.run(StorePlan(several(3))) == {"m0", "m2"}
    assert server.steps == ["send 3", "fetch", "fetch", "fetch"]


def test_many_unconfirmed_memories_are_found_by_one_listing() -> None:
    """A server that keeps everything and names nothing costs one request more."""
    server = Server(names=False)
    assert server.run(StorePlan(several(50))) == set()
    assert server.steps == ["send 50", "list 50"]


def test_a_server_that_keeps_nothing_is_asked_for_a_few_memories() -> None:
    """After that all of them count as not kept, also one that was not fetched."""
    server = Server(names=False, keeps=False)
    assert server.run(StorePlan(several(50))) == {one.id for one in several(50)}
    assert server.steps == ["send 50", "list 50"] + ["fetch"] * SAMPLES


def test_a_conflict_of_many_is_resolved_by_one_listing() -> None:
    """Memories that the server holds already are left out of the next request."""
    server = Server(*[f"m{number}" for number in range(10)])
    assert server.run(StorePlan(several(50)), conflicts=True) == set()
    assert server.steps == ["send 50", "list 50", "send 40"]


def test_a_conflict_of_all_ends_with_the_listing() -> None:
    """Nothing is left to send."""
    server = Server(*[f"m{number}" for number in range(50)])
    assert server.run(StorePlan(several(50)), conflicts=True) == set()
    assert server.steps == ["send 50", "list 50"]


def test_a_conflict_that_no_listing_explains_is_halved() -> None:
    """Down to single memories, which are compared with what the server holds."""
    plan = StorePlan(several(8))
    sizes = []
    while (step := plan.next()) is not None:
        if isinstance(step, Send):
            sizes.append(len(step.memories))
            plan.refused(step, CONFLICT)
        elif isinstance(step, ListNewest):
            plan.listed(step, ())
        else:
            plan.fetched(step, is_held=True)
    assert sizes == [8, 4, 2, 1, 1, 2, 1, 1, 4, 2, 1, 1, 2, 1, 1]
    assert plan.unkept == set()


def test_a_conflicting_memory_with_other_content_is_not_kept() -> None:
    """The id exists, but what stands under it is not this memory."""
    plan = StorePlan(several(1))
    step = plan.next()
    assert isinstance(step, Send)
    plan.refused(step, CONFLICT)
    step = plan.next()
    assert isinstance(step, Fetch)
    plan.fetched(step, is_held=False)
    assert plan.next() is None
    assert plan.unkept == {"m0"}


def test_a_refused_operation_is_halved() -> None:
    """The parts of one operation may be too large together; the error is raised for one part."""
    plan = StorePlan(several(4, operation=1))
    step = plan.next()
    assert isinstance(step, Send)
    plan.refused(step, REFUSED)
    halves = [plan.next(), plan.next()]
    assert [[one.id for one in half.memories] for half in halves if isinstance(half, Send)] == [
        ["m0", "m1"],
        ["m2", "m3"],
    ]
    with pytest.raises(RemoteError):
        Server().run(StorePlan(several(4, operation=1)), refuses="m2")


def test_a_refusal_of_several_operations_is_raised_at_once() -> None:
    """The push divides them, because it can park the one at fault."""
    server = Server()
    with pytest.raises(RemoteError) as raised:
        server.run(StorePlan(several(4)), refuses="m2")
    assert raised.value is REFUSED
    assert server.steps == ["send 4"]


@pytest.mark.parametrize("error", [UNREACHABLE, RemoteError(Verdict.BUSY, "later")])
def test_an_error_that_size_does_not_explain_is_raised(error: RemoteError) -> None:
    """A smaller request would fail as well."""
    plan = StorePlan(several(1))
    step = plan.next()
    assert isinstance(step, Send)
    with pytest.raises(RemoteError) as raised:
        plan.refused(step, error)
    assert raised.value is error
