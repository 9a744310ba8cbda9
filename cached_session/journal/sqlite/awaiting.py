"""Wait for a job in another thread; delay a cancellation of the caller until the job has ended."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import anyio

__all__ = ["ShieldedFuture", "shielded"]

T = TypeVar("T")


class ShieldedFuture(asyncio.Future[T]):
    """A future of a job that runs to its end even if the waiting task is cancelled.

    The task receives the cancellation after the job has ended, as with `shielded`. This class
    avoids the cost of a cancel scope and a waiter, which would slow down every write.
    """

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 - asyncio's signature
        """Return False: the job cannot be cancelled."""
        return False

    def complete(self, result: T | None, error: BaseException | None) -> None:
        """Set the job's error, or the job's result if the error is None. Call this method on the
        thread of the future's event loop."""
        if error is None:
            self.set_result(result)  # type: ignore[arg-type]
        else:
            self.set_exception(error)


async def shielded(future: asyncio.Future[T]) -> T:
    """Wait until a future is done, and return its result.

    If the waiting task is cancelled, raise the cancellation after the future is done, and discard
    the result or error of the future.
    """
    if isinstance(future, ShieldedFuture):
        result: T = await future
        return result
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            # Without the shield, anyio delivers its cancellation again on every pass of the loop.
            with anyio.CancelScope(shield=True):
                await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # mark it as retrieved, so that asyncio does not log it
        raise cancelled
    return future.result()
