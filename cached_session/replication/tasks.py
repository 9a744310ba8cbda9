"""Tools for tasks on the event loop: long computations in slices, and cancelling for certain.

Computations run on the loop in slices and not in a thread, because a thread makes the loop wait
longer. The thread that runs Python code holds the interpreter's lock. A thread that finds it free,
as it is for a moment in each read of the journal, keeps it for up to the interpreter's switch
interval, or for a whole call into a library that does not release it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import anyio
import anyio.lowlevel

from cached_session.journal.journal import shielded

__all__ = ["SliceBudget", "cancel_all"]


class SliceBudget:
    """The work that a computation may do before it lets other tasks run.

    Work is counted in units of the caller and not timed, so that the same work has the same slices
    in every run.
    """

    def __init__(self, units: int) -> None:
        self._units = self._remaining = units

    async def spend(self, units: int) -> None:
        """Count work that was done; let other tasks run if the slice is used up."""
        self._remaining -= units
        if self._remaining <= 0:
            self._remaining = self._units
            await anyio.lowlevel.checkpoint()


async def cancel_all(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel tasks and return when each has ended, with a result, an error or cancelled."""
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    await shielded(asyncio.ensure_future(asyncio.wait(tasks)))
    for task in tasks:
        if not task.cancelled():
            # Mark the exception as retrieved: the awaiting caller has it, or has failed already.
            task.exception()
