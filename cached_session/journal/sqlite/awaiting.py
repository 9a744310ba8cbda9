"""Await a job of another thread without abandoning it when the caller is cancelled."""

from __future__ import annotations

import asyncio

import anyio

from cached_session.journal.sqlite.db_errors import T

__all__ = ["ShieldedFuture", "shielded"]


class ShieldedFuture(asyncio.Future[T]):
    """The outcome of a job that runs to its end even if its caller is cancelled.

    A task that is cancelled while it waits for this future gets the cancellation once the outcome
    is known. `shielded` does the same for any future, at a higher cost per call."""

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 - asyncio's signature
        """Nothing: the job goes on."""
        return False

    def tell(self, result: T | None, error: BaseException | None) -> None:
        """What became of the job; on the thread of the future's loop."""
        if error is None:
            self.set_result(result)  # type: ignore[arg-type]
        else:
            self.set_exception(error)


async def shielded(future: asyncio.Future[T]) -> T:
    """Await an outcome that must be known: a cancellation waits until it is, then goes on."""
    if isinstance(future, ShieldedFuture):
        outcome: T = await future
        return outcome
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            # anyio would deliver its cancellation again at every turn of the loop.
            with anyio.CancelScope(shield=True):
                await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # seen: it must not be reported as never retrieved
        raise cancelled
    return future.result()
