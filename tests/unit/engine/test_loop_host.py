"""The host of a replicator: calls that run on its loop while it moves, ends, or loses the loop.
Each loop here is controlled by its test at the one moment that matters, so that every test runs one
fixed interleaving of two threads."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from cached_session.engine.loop_host import LoopHost
from cached_session.errors import SessionClosed, SyncError
from cached_session.remote.connect import RemoteSpec
from cached_session.replication.replicator import Replicator

IN_DOUBT = SyncError("it began")
SPEC = RemoteSpec("http://localhost:3000")
WATCH_INTERVAL = 0.02
REPLICATOR_TASK = "cached-session-replicator"


class FakeReplicator:
    """A replacement for the replicator: it runs until it is cancelled."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def run(self) -> None:
        await asyncio.Event().wait()


class HostedReplicator:
    """A host, and how its replicators start."""

    def __init__(self) -> None:
        self.spec: RemoteSpec | None = SPEC
        self.started = 0
        self.starting = asyncio.Event()
        self.hold: asyncio.Event | None = None
        self.host = LoopHost(
            "a journal",
            threading.RLock(),
            lambda: self.spec,
            self._start,
            watch_interval=WATCH_INTERVAL,
        )

    async def _start(self, spec: RemoteSpec) -> Replicator:
        assert spec is SPEC
        self.started += 1
        self.starting.set()
        replicator = FakeReplicator(f"number {self.started}")
        if self.hold is not None:
            await self.hold.wait()
        return cast("Replicator", replicator)

    async def detach(self) -> None:
        stop = self.host.detach()
        assert stop is not None
        await stop()


async def name_of(replicator: Replicator) -> str:
    return cast("FakeReplicator", replicator).name


class Loop(asyncio.SelectorEventLoop):
    """An event loop in a thread of its own, which can be stopped and closed from outside."""

    def __init__(self) -> None:
        self.before_call_soon: Callable[[], object] | None = None
        """Called once, before another thread schedules a callback on this loop."""
        self.before_is_running: Callable[[], object] | None = None
        """Called once, before `is_running` answers."""
        self._thread: threading.Thread | None = None
        self._closes = False
        super().__init__()

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        hook, self.before_call_soon = self.before_call_soon, None
        if hook is not None:
            hook()
        return super().call_soon_threadsafe(*args, **kwargs)

    def is_running(self) -> bool:
        hook, self.before_is_running = self.before_is_running, None
        if hook is not None:
            hook()
        return super().is_running()

    def start(self) -> None:
        """Run the loop from now on."""
        started = threading.Event()
        self.call_soon(started.set)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        started.wait()

    def _run(self) -> None:
        self.run_forever()
        if self._closes:
            self.run_until_complete(self._end_tasks())
            self.close()

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def run_coroutine(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a function on the loop and wait for its result."""
        asyncio.run_coroutine_threadsafe(work, self).result()

    def stop_and_join(self) -> None:
        """Stop the loop, without running its pending callbacks."""
        assert self._thread is not None
        super().call_soon_threadsafe(self.stop)
        self._thread.join()

    def stop_and_close(self) -> None:
        """Stop the loop, cancel its tasks and close it, as `asyncio.run` does."""
        self._closes = True
        self.stop_and_join()


@pytest.fixture
def other_loop() -> Any:
    """Return another event loop, in a thread of its own."""
    loop = Loop()
    loop.start()
    yield loop
    if not loop.is_closed():
        if not loop.is_running():
            loop.start()
        loop.stop_and_close()
    # Coroutines that were never awaited and errors that were never retrieved are reported now.
    gc.collect()


@pytest.fixture
def hosted(other_loop: Loop) -> HostedReplicator:
    """Return a host whose replicator runs on the other loop."""
    hosted = HostedReplicator()
    other_loop.run_coroutine(hosted.host.run(name_of))
    return hosted


async def test_a_call_runs_on_the_replicators_loop(hosted: HostedReplicator) -> None:
    """Its result or error is returned, and there is one replicator."""

    async def fail(_: Replicator) -> None:
        raise LookupError("not there")

    assert await hosted.host.run(name_of) == "number 1"
    with pytest.raises(LookupError, match="not there"):
        await hosted.host.run(fail)
    await hosted.detach()
    assert hosted.started == 1


@pytest.mark.parametrize("in_doubt", [None, IN_DOUBT])
@pytest.mark.parametrize("end", ["stop_and_join", "stop_and_close"])
async def test_a_call_survives_a_loop_that_ends_before_the_handover(
    hosted: HostedReplicator, other_loop: Loop, end: str, in_doubt: SyncError | None
) -> None:
    """The call has not begun, so that the next host runs it, even if it must run only once."""
    other_loop.before_call_soon = getattr(other_loop, end)
    assert await hosted.host.run(name_of, in_doubt=in_doubt) == "number 2"
    await hosted.detach()


async def test_a_call_survives_a_loop_that_ends_before_it_begins(
    hosted: HostedReplicator, other_loop: Loop
) -> None:
    """The next host runs a call that was handed over and has not begun, once, and the old loop does
    not run it if it starts again."""
    done: list[str] = []

    async def work(replicator: Replicator) -> None:
        done.append(await name_of(replicator))

    other_loop.before_call_soon = other_loop.stop_and_join
    await hosted.host.run(work, in_doubt=IN_DOUBT)
    other_loop.start()
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), other_loop))
    assert done == ["number 2"]
    await hosted.detach()


@pytest.mark.parametrize("in_doubt", [None, IN_DOUBT])
async def test_a_call_is_repeated_after_a_loop_that_ends_during_it(
    hosted: HostedReplicator,
    other_loop: Loop,
    in_doubt: SyncError | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The next host runs the call again if it can be repeated, and the first attempt has no
    effect."""
    begun = asyncio.Event()
    here = asyncio.get_running_loop()

    async def work(replicator: Replicator) -> str:
        here.call_soon_threadsafe(begun.set)
        if asyncio.get_running_loop() is other_loop:
            await asyncio.Event().wait()
        return await name_of(replicator)

    call = asyncio.ensure_future(hosted.host.run(work, in_doubt=in_doubt))
    await begun.wait()
    other_loop.stop_and_join()
    other_loop.close()
    if in_doubt is None:
        assert await call == "number 2"
        await hosted.detach()
    else:
        with pytest.raises(SyncError, match="it began"):
            await call
    # asyncio reports the tasks of a loop that is closed while they run.
    ours = [record for record in caplog.records if record.name != "asyncio"]
    assert [record for record in ours if record.levelno >= logging.WARNING] == []


async def test_a_result_before_the_end_of_a_loop_is_kept(
    hosted: HostedReplicator, other_loop: Loop
) -> None:
    """An item that was popped there must not be lost because the loop ends before the result
    arrives."""
    goes_on, done = asyncio.Event(), threading.Event()

    def end() -> None:
        other_loop.call_soon_threadsafe(goes_on.set)
        done.wait()
        other_loop.stop_and_close()

    async def work(replicator: Replicator) -> str:
        other_loop.before_is_running = end
        await goes_on.wait()
        other_loop.call_soon(other_loop.call_soon, done.set)
        return await name_of(replicator)

    assert await hosted.host.run(work, in_doubt=IN_DOUBT) == "number 1"


@pytest.mark.parametrize("end", ["stop_and_join", "stop_and_close"])
async def test_a_loop_that_ends_during_a_close_does_not_block_it(
    hosted: HostedReplicator, other_loop: Loop, end: str
) -> None:
    """There is nothing left to stop, so the close logs nothing and does not wait."""
    other_loop.before_call_soon = getattr(other_loop, end)
    await hosted.detach()
    assert hosted.host.replicator() is None


async def test_a_cancelled_call_is_cancelled_on_its_loop(hosted: HostedReplicator) -> None:
    """No caller waits for it any more."""
    begun, ended = threading.Event(), threading.Event()

    async def work(_: Replicator) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    call = asyncio.ensure_future(hosted.host.run(work))
    await asyncio.to_thread(begun.wait)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.to_thread(ended.wait)
    await hosted.detach()


# -- one loop -------------------------------------------------------------------------------------


async def test_a_call_that_waits_for_a_closing_replicator_gets_the_next() -> None:
    """Closing one session does not cancel the call of another that waits for their replicator to
    start."""
    hosted = HostedReplicator()
    hosted.hold = asyncio.Event()
    call = asyncio.ensure_future(hosted.host.run(name_of, in_doubt=IN_DOUBT))
    await hosted.starting.wait()
    hosted.hold.set()
    await hosted.detach()
    assert await call == "number 2"
    await hosted.detach()


async def test_a_replicator_that_is_cancelled_before_its_first_step_blocks_no_call() -> None:
    """Such a task ends without running any of its code."""
    hosted = HostedReplicator()

    async def cancel() -> None:
        (task,) = (task for task in asyncio.all_tasks() if task.get_name() == REPLICATOR_TASK)
        task.cancel()

    call = asyncio.ensure_future(hosted.host.run(name_of))
    # It runs right after the step of the call in which the replicator's task is made.
    await asyncio.ensure_future(cancel())
    assert hosted.started == 0
    assert await call == "number 1"
    await hosted.detach()


@pytest.mark.parametrize("in_doubt", [None, IN_DOUBT])
async def test_a_call_does_not_continue_with_an_ended_replicator(
    in_doubt: SyncError | None,
) -> None:
    """Its connections are closed, so that a call which retries until it succeeds would never
    end."""
    hosted = HostedReplicator()
    begun = asyncio.Event()

    async def work(replicator: Replicator) -> str:
        if not begun.is_set():
            begun.set()
            await asyncio.Event().wait()
        return await name_of(replicator)

    call = asyncio.ensure_future(hosted.host.run(work, in_doubt=in_doubt))
    await begun.wait()
    await hosted.detach()
    if in_doubt is None:
        assert await call == "number 2"
        await hosted.detach()
    else:
        with pytest.raises(SyncError, match="it began"):
            await call


async def test_calls_move_with_the_replicator(hosted: HostedReplicator, other_loop: Loop) -> None:
    """The calls run on the next loop, even if the earlier one keeps running."""
    begun = threading.Event()

    async def work(replicator: Replicator) -> str:
        if asyncio.get_running_loop() is other_loop:
            begun.set()
            await asyncio.Event().wait()
        return await name_of(replicator)

    call = asyncio.ensure_future(hosted.host.run(work))
    await asyncio.to_thread(begun.wait)
    await hosted.detach()
    assert await call == "number 2"
    await hosted.detach()


async def test_a_call_without_a_replicator_raises() -> None:
    """The last session with a server was closed, perhaps the caller's own."""
    hosted = HostedReplicator()
    hosted.hold = asyncio.Event()
    call = asyncio.ensure_future(hosted.host.run(name_of))
    await hosted.starting.wait()
    hosted.spec = None
    await hosted.detach()
    with pytest.raises(SessionClosed):
        await call
    with pytest.raises(SyncError, match="no server"):
        await hosted.host.run(name_of)
