"""Waiting for a job that a cancellation must not abandon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio
import pytest

from cached_session.journal.sqlite.awaiting import ShieldedFuture, shielded

Make = Callable[[], "asyncio.Future[str]"]


def plain() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


def of_a_job() -> asyncio.Future[str]:
    return ShieldedFuture(loop=asyncio.get_running_loop())


both = pytest.mark.parametrize("make", [plain, of_a_job])


async def turns(most: int = 5) -> None:
    """Let all other tasks run until they wait."""
    for _ in range(most):
        await asyncio.sleep(0)


@both
async def test_a_result_is_returned(make: Make) -> None:
    """The result is the future's, whether it is done before or while it is awaited."""
    early, late = make(), make()
    early.set_result("early")
    asyncio.get_running_loop().call_soon(late.set_result, "late")
    assert [await shielded(early), await shielded(late)] == ["early", "late"]


@both
async def test_an_error_is_raised(make: Make) -> None:
    """The error of the job reaches the caller."""
    future = make()
    asyncio.get_running_loop().call_soon(future.set_exception, OSError("no space"))
    with pytest.raises(OSError, match="no space"):
        await shielded(future)


@both
async def test_a_cancelled_task_ends_after_the_job(make: Make) -> None:
    """The task stays until the future is done, however often it is cancelled."""
    future = make()
    task = asyncio.ensure_future(shielded(future))
    for _ in range(3):
        await turns()
        task.cancel()
    await turns()
    assert not task.done()
    assert not future.cancelled()
    future.set_result("written")
    with pytest.raises(asyncio.CancelledError):
        await task


@both
async def test_a_cancelled_scope_ends_after_the_job(make: Make) -> None:
    """A cancel scope of anyio, which cancels again and again, waits as well."""
    future = make()
    ended = asyncio.Event()

    async def run() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await shielded(future)
        ended.set()

    task = asyncio.ensure_future(run())
    await turns()
    assert not ended.is_set()
    future.set_result("written")
    await task
    assert ended.is_set()


async def test_the_error_of_a_cancelled_wait_is_marked_as_retrieved() -> None:
    """Python does not report an error as never retrieved where the cancellation replaces it."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    future = plain()
    task = asyncio.ensure_future(shielded(future))
    await turns()
    task.cancel()
    await turns()
    future.set_exception(OSError("no space"))
    with pytest.raises(asyncio.CancelledError):
        await task
    del future, task
    await turns()
    assert reported == []


async def test_a_future_that_was_cancelled_itself_cancels_its_caller() -> None:
    """The caller gets the cancellation of the future."""
    future = plain()
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await shielded(future)


async def test_a_job_cannot_be_cancelled() -> None:
    """`cancel` reports False and changes nothing."""
    future: ShieldedFuture[str] = ShieldedFuture(loop=asyncio.get_running_loop())
    assert future.cancel() is False
    future.complete("written", None)
    assert await future == "written"


async def test_a_job_completes_with_its_error() -> None:
    """An error takes precedence over a result."""
    future: ShieldedFuture[str] = ShieldedFuture(loop=asyncio.get_running_loop())
    future.complete(None, OSError("no space"))
    with pytest.raises(OSError, match="no space"):
        await future
