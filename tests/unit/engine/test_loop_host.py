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
LOOK = 0.02
LODGERS = "cached-session-replicator"


class Lodger:
    """A replacement for the replicator: it runs until it is cancelled."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def run(self) -> None:
        await asyncio.Event().wait()


class House:
    """A host, and how its replicators start."""

    def __init__(self) -> None:
        self.spec: RemoteSpec | None = SPEC
        self.settled = 0
        self.settling = asyncio.Event()
        self.hold: asyncio.Event | None = None
        self.host = LoopHost(
            "a journal", threading.RLock(), lambda: self.spec, self._start, watch_interval=LOOK
        )

    async def _start(self, spec: RemoteSpec) -> Replicator:
        assert spec is SPEC
        self.settled += 1
        self.settling.set()
        lodger = Lodger(f"number {self.settled}")
        if self.hold is not None:
            await self.hold.wait()
        return cast("Replicator", lodger)

    async def leave(self) -> None:
        stop = self.host.detach()
        assert stop is not None
        await stop()


async def name_of(replicator: Replicator) -> str:
    return cast("Lodger", replicator).name


class Loop(asyncio.SelectorEventLoop):
    """An event loop in a thread of its own, which can be stopped and closed from outside."""

    def __init__(self) -> None:
        self.before_told: Callable[[], object] | None = None
        """Done once, before another thread tells this loop anything."""
        self.before_looked: Callable[[], object] | None = None
        """Done once, before somebody is told whether this loop turns."""
        self._thread: threading.Thread | None = None
        self._closes = False
        super().__init__()

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        happens, self.before_told = self.before_told, None
        if happens is not None:
            happens()
        return super().call_soon_threadsafe(*args, **kwargs)

    def is_running(self) -> bool:
        happens, self.before_looked = self.before_looked, None
        if happens is not None:
            happens()
        return super().is_running()

    def turn(self) -> None:
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

    def do(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a function on the loop and wait for its result."""
        asyncio.run_coroutine_threadsafe(work, self).result()

    def halt(self) -> None:
        """Stop the loop, without running its pending callbacks."""
        assert self._thread is not None
        super().call_soon_threadsafe(self.stop)
        self._thread.join()

    def shut(self) -> None:
        """Stop the loop, cancel its tasks and close it, as `asyncio.run` does."""
        self._closes = True
        self.halt()


@pytest.fixture
def there() -> Any:
    """Return another event loop, in a thread of its own."""
    loop = Loop()
    loop.turn()
    yield loop
    if not loop.is_closed():
        if not loop.is_running():
            loop.turn()
        loop.shut()
    # What was never awaited, or never retrieved, speaks up now.
    gc.collect()


@pytest.fixture
def house(there: Loop) -> House:
    """Return a host whose replicator runs on the other loop."""
    house = House()
    there.do(house.host.run(name_of))
    return house


async def test_a_call_runs_on_the_replicators_loop(house: House) -> None:
    """Its result or error is returned, and there is one replicator."""

    async def fail(_: Replicator) -> None:
        raise LookupError("not there")

    assert await house.host.run(name_of) == "number 1"
    with pytest.raises(LookupError, match="not there"):
        await house.host.run(fail)
    await house.leave()
    assert house.settled == 1


@pytest.mark.parametrize("in_doubt", [None, IN_DOUBT])
@pytest.mark.parametrize("end", ["halt", "shut"])
async def test_a_call_survives_a_loop_that_ends_before_the_handover(
    house: House, there: Loop, end: str, in_doubt: SyncError | None
) -> None:
    """The call has not begun, so that the next host runs it, even if it must run only once."""
    there.before_told = getattr(there, end)
    assert await house.host.run(name_of, in_doubt=in_doubt) == "number 2"
    await house.leave()


async def test_a_call_survives_a_loop_that_ends_before_it_begins(house: House, there: Loop) -> None:
    """The next host runs a call that was handed over and has not begun, once, and the old loop does
    not run it if it starts again."""
    done: list[str] = []

    async def work(replicator: Replicator) -> None:
        done.append(await name_of(replicator))

    there.before_told = there.halt
    await house.host.run(work, in_doubt=IN_DOUBT)
    there.turn()
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), there))
    assert done == ["number 2"]
    await house.leave()


@pytest.mark.parametrize("in_doubt", [None, IN_DOUBT])
async def test_a_call_is_repeated_after_a_loop_that_ends_during_it(
    house: House, there: Loop, in_doubt: SyncError | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The next host runs the call again if it can be repeated, and the first attempt has no
    effect."""
    begun = asyncio.Event()
    here = asyncio.get_running_loop()

    async def work(replicator: Replicator) -> str:
        here.call_soon_threadsafe(begun.set)
        if asyncio.get_running_loop() is there:
            await asyncio.Event().wait()
        return await name_of(replicator)

    call = asyncio.ensure_future(house.host.run(work, in_doubt=in_doubt))
    await begun.wait()
    there.halt()
    there.close()
    if in_doubt is None:
        assert await call == "number 2"
        await house.leave()
    else:
        with pytest.raises(SyncError, match="it began"):
            await call
    # Tasks of a loop that is closed under them are asyncio's to complain about.
    ours = [record for record in caplog.records if record.name != "asyncio"]
    assert [record for record in ours if record.levelno >= logging.WARNING] == []


async def test_a_result_before_the_end_of_a_loop_is_kept(house: House, there: Loop) -> None:
    """An item that was popped there must not be lost because the loop ends before the result
    arrives."""
    goes_on, done = asyncio.Event(), threading.Event()

    def end() -> None:
        there.call_soon_threadsafe(goes_on.set)
        done.wait()
        there.shut()

    async def work(replicator: Replicator) -> str:
        there.before_looked = end
        await goes_on.wait()
        there.call_soon(there.call_soon, done.set)
        return await name_of(replicator)

    assert await house.host.run(work, in_doubt=IN_DOUBT) == "number 1"


@pytest.mark.parametrize("end", ["halt", "shut"])
async def test_a_loop_that_ends_during_a_close_does_not_block_it(
    house: House, there: Loop, end: str
) -> None:
    """There is nothing left to stop, so the close logs nothing and does not wait."""
    there.before_told = getattr(there, end)
    await house.leave()
    assert house.host.replicator() is None


async def test_a_cancelled_call_is_cancelled_on_its_loop(house: House) -> None:
    """No caller waits for it any more."""
    begun, ended = threading.Event(), threading.Event()

    async def work(_: Replicator) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    call = asyncio.ensure_future(house.host.run(work))
    await asyncio.to_thread(begun.wait)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.to_thread(ended.wait)
    await house.leave()


# -- one loop -------------------------------------------------------------------------------------


async def test_a_call_that_waits_for_a_closing_replicator_gets_the_next() -> None:
    """Closing one session does not cancel the call of another that waits for their replicator to
    start."""
    house = House()
    house.hold = asyncio.Event()
    call = asyncio.ensure_future(house.host.run(name_of, in_doubt=IN_DOUBT))
    await house.settling.wait()
    house.hold.set()
    await house.leave()
    assert await call == "number 2"
    await house.leave()


async def test_a_replicator_that_is_cancelled_before_its_first_step_blocks_no_call() -> None:
    """Such a task ends without running any of its code."""
    house = House()

    async def cancel() -> None:
        (living,) = (task for task in asyncio.all_tasks() if task.get_name() == LODGERS)
        living.cancel()

    call = asyncio.ensure_future(house.host.run(name_of))
    # Its turn is right after the call's, in which the replicator's task is made.
    await asyncio.ensure_future(cancel())
    assert house.settled == 0
    assert await call == "number 1"
    await house.leave()


@pytest.mark.parametrize("in_doubt", [None, IN_DOUBT])
async def test_a_call_does_not_continue_with_an_ended_replicator(
    in_doubt: SyncError | None,
) -> None:
    """Its connections are closed, so that a call which retries until it succeeds would never
    end."""
    house = House()
    begun = asyncio.Event()

    async def work(replicator: Replicator) -> str:
        if not begun.is_set():
            begun.set()
            await asyncio.Event().wait()
        return await name_of(replicator)

    call = asyncio.ensure_future(house.host.run(work, in_doubt=in_doubt))
    await begun.wait()
    await house.leave()
    if in_doubt is None:
        assert await call == "number 2"
        await house.leave()
    else:
        with pytest.raises(SyncError, match="it began"):
            await call


async def test_calls_move_with_the_replicator(house: House, there: Loop) -> None:
    """The calls run on the next loop, even if the earlier one keeps running."""
    begun = threading.Event()

    async def work(replicator: Replicator) -> str:
        if asyncio.get_running_loop() is there:
            begun.set()
            await asyncio.Event().wait()
        return await name_of(replicator)

    call = asyncio.ensure_future(house.host.run(work))
    await asyncio.to_thread(begun.wait)
    await house.leave()
    assert await call == "number 2"
    await house.leave()


async def test_a_call_without_a_replicator_raises() -> None:
    """The last session with a server was closed, perhaps the caller's own."""
    house = House()
    house.hold = asyncio.Event()
    call = asyncio.ensure_future(house.host.run(name_of))
    await house.settling.wait()
    house.spec = None
    await house.leave()
    with pytest.raises(SessionClosed):
        await call
    with pytest.raises(SyncError, match="no server"):
        await house.host.run(name_of)
