"""Work of the processor, in slices on the event loop.

Code in a thread keeps the loop waiting longer than the same code on the loop in slices: whoever
runs Python holds the interpreter's lock, and a thread that finds it free, as it is for a moment in
every read of the journal, keeps it for up to the interpreter's switch interval, or for a whole call
into a library that never lets go of it.
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
    """Lets the event loop turn after each slice. What work costs is counted, not timed: the same
    work has the same slices everywhere."""

    def __init__(self, slice_: int) -> None:
        self._slice = self._left = slice_

    async def spend(self, cost: int) -> None:
        """So much of the slice has been used."""
        self._left -= cost
        if self._left <= 0:
            self._left = self._slice
            await anyio.lowlevel.checkpoint()


async def cancel_all(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel what is still under way; returns when all of it has ended, whatever came of it."""
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    await shielded(asyncio.ensure_future(asyncio.wait(tasks)))
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: whoever waits has it, or has failed already
