"""Tools for tasks on the event loop: run long computations in slices, and cancel tasks reliably.

Computations run on the loop in slices and not in a thread, because a thread would block the loop
for longer. A thread needs the interpreter lock to run Python code. Each read of the journal
releases the lock for a short time. If the thread takes the lock in this time, the loop waits for
the lock: up to the interpreter's switch interval, or during a whole call into a library that does
not release the lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from cached_session.journal.journal import shielded

__all__ = ["SliceBudget", "cancel_all", "run_each"]

T = TypeVar("T")


class SliceBudget:
    """The amount of work that a computation may do before it lets other tasks run.

    The caller defines the unit. Work is counted and not timed, so that identical work is divided
    into identical slices in every run.
    """

    def __init__(self, units: int) -> None:
        self._units = self._remaining = units

    async def spend(self, units: int) -> None:
        """Count work that is done; let other tasks run if the budget of the slice is used up."""
        self._remaining -= units
        if self._remaining <= 0:
            self._remaining = self._units
            await anyio.lowlevel.checkpoint()


async def cancel_all(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel tasks; return when each task has ended with a result, an error or a cancellation."""
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    await shielded(asyncio.ensure_future(asyncio.wait(tasks)))
    for task in tasks:
        if not task.cancelled():
            # Mark the exception as retrieved, so that asyncio does not log it. The caller has
            # already received it, or has failed with another error.
            task.exception()


async def run_each(
    work: Callable[[T], Awaitable[None]], values: Iterable[T], parallel: int
) -> Exception | None:
    """Call a function for several values, some at a time; return the first failure, or None.

    A failed call does not stop the other calls.
    """
    failures: list[Exception] = []
    limiter = anyio.CapacityLimiter(parallel)

    async def run(value: T) -> None:
        async with limiter:
            try:
                await work(value)
            except Exception as error:  # noqa: BLE001 - returned below
                failures.append(error)

    async with anyio.create_task_group() as group:
        for value in values:
            group.start_soon(run, value)
    return failures[0] if failures else None
