"""Slices of work and certain cancellation."""

from __future__ import annotations

import asyncio

import pytest

from cached_session.replication.tasks import SliceBudget, cancel_all


async def turns(costs: list[int], units: int) -> int:
    """Return how often another task ran while work of these costs was done."""
    ran = 0

    async def other() -> None:
        nonlocal ran
        while True:
            ran += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    budget = SliceBudget(units)
    for cost in costs:
        await budget.spend(cost)
    await cancel_all([task])
    return ran


async def test_other_tasks_run_after_each_slice() -> None:
    """A slice is counted in units of work, so that it is the same in every run."""
    assert await turns([1] * 9, 10) == 0
    assert await turns([1] * 30, 10) == 3
    assert await turns([25, 25], 10) == 2


async def test_cancelled_tasks_have_ended() -> None:
    """Also one that takes its time, fails, or has finished before."""
    ended: list[str] = []
    started = asyncio.Event()

    async def slow() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            ended.append("slow")

    async def failing() -> None:
        raise ValueError("failed")

    async def finished() -> None:
        ended.append("finished")

    tasks = [asyncio.ensure_future(work()) for work in (slow, failing, finished)]
    await started.wait()
    await cancel_all(tasks)
    assert all(task.done() for task in tasks)
    assert sorted(ended) == ["finished", "slow"]


async def test_cancelling_nothing_returns() -> None:
    """There is nothing to wait for."""
    await cancel_all([])


async def test_a_cancelled_caller_waits_for_the_end_as_well() -> None:
    """No task outlives the caller that cancels it."""
    ended = asyncio.Event()
    started, proceed = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await proceed.wait()
            ended.set()

    task = asyncio.ensure_future(slow())
    await started.wait()
    caller = asyncio.ensure_future(cancel_all([task]))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    proceed.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()
