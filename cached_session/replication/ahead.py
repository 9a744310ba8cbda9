"""What is begun before it is needed, and ended when nobody needs it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from cached_session.journal.journal import settle

__all__ = ["give_up"]


async def give_up(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel what is still under way; returns when all of it has ended, whatever came of it."""
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    await settle(asyncio.ensure_future(asyncio.wait(tasks)))
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: whoever waits has it, or has failed already
