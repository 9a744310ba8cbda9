"""What becomes of the tasks of a process that was killed."""

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


def killed(loop: SimLoop, work: Any, last: Callable[[], Any] = lambda: None) -> None:
    """Begin something as a process that is killed in the middle of it, just after the last thing
    that happens to it."""
    owner = Owner("p")
    context = copy_context()
    context.run(OWNER.set, owner)
    context.run(loop.create_task, work)
    loop.run_until_complete(asyncio.sleep(1))
    last()
    owner.dead = True
    loop.run_until_complete(asyncio.sleep(10))


def test_the_killed_do_nothing_and_end_in_their_own_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """When they are buried: then nothing of them is left for the collector to complain about."""
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
    # What would wake them up is on its way, and is dropped.
    killed(loop, work(), last=news.set)
    assert ended == []
    assert loop.bury() == set()
    assert sorted(ended) == ["child", "parent"]
    loop.close()
    gc.collect()
    assert complaints == []


def test_who_cannot_be_cancelled_is_told() -> None:
    """A task that does not end has nobody to wait for it."""
    loop = SimLoop()
    over = asyncio.Event()

    async def stubborn() -> None:
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()

    killed(loop, stubborn())
    (left,) = loop.bury()
    assert left.get_coro().__name__ == "stubborn"  # type: ignore[union-attr]
    over.set()
    assert loop.bury() == set()
    loop.close()
