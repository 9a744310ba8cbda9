"""The tasks of a killed process on the virtual loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import anyio
import pytest

from tests.simulation.loop import OWNER, Owner, SimLoop


def started_and_killed(loop: SimLoop, work: Any, last: Callable[[], Any] = lambda: None) -> None:
    """Start something as a process that is killed in the middle of it, after its last event."""
    owner = Owner("p")
    context = copy_context()
    context.run(OWNER.set, owner)
    context.run(loop.create_task, work)
    loop.run_until_complete(asyncio.sleep(1))
    last()
    owner.dead = True
    loop.run_until_complete(asyncio.sleep(10))


def test_tasks_of_a_killed_process_do_nothing_and_end_in_their_own_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After `end_tasks` nothing of them is left for the garbage collector to report."""
    loop, complaints, ended = SimLoop(), list[Any](), list[str]()

    news = asyncio.Event()

    async def sleep(name: str) -> None:
        began = asyncio.current_task()
        try:
            await news.wait()
            ended.append("it ran on")
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)
            assert asyncio.current_task() is began
            ended.append(name)

    async def work() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(sleep, "child")
            await sleep("parent")

    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    # The events that would wake them up are due, and are dropped.
    started_and_killed(loop, work(), last=news.set)
    assert ended == []
    assert loop.end_tasks() == set()
    assert sorted(ended) == ["child", "parent"]
    loop.close()
    gc.collect()
    assert complaints == []


def test_a_task_that_does_not_end_is_returned() -> None:
    """A task that ignores its cancellation is reported."""
    loop = SimLoop()
    over = asyncio.Event()

    async def stubborn() -> None:
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()

    started_and_killed(loop, stubborn())
    (left,) = loop.end_tasks()
    assert left.get_coro().__name__ == "stubborn"  # type: ignore[union-attr]
    over.set()
    assert loop.end_tasks() == set()
    loop.close()
