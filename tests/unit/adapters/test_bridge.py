"""The thread on which synchronous methods of adapters run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext

import pytest

from cached_session import CachedSession, SessionClosed, WouldBlock
from cached_session.adapters import Bridge
from cached_session.adapters.bridge import THREAD_NAME, shared_bridge


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    with Bridge() as bridge:
        yield bridge


def bridge_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def fail() -> None:
    raise LookupError("no such thing")


async def thread_id() -> int:
    return threading.get_ident()


def test_a_call_returns_its_result_or_raises_its_error(bridge: Bridge) -> None:
    """Synchronous code gets the same outcome as code that awaits the call."""
    assert bridge.run(double, 21) == 42
    with pytest.raises(LookupError, match="no such thing"):
        bridge.run(fail)
    assert bridge.run(double, 1) == 2


def test_all_calls_run_on_one_loop_of_another_thread(bridge: Bridge) -> None:
    """Background work of a session runs on between two calls, because its loop does."""

    async def loop() -> int:
        return id(asyncio.get_running_loop())

    assert bridge.run(loop) == bridge.run(loop)
    assert bridge.run(thread_id) == bridge.run(thread_id) != threading.get_ident()


def test_calls_from_many_threads_run_concurrently(bridge: Bridge) -> None:
    """Two calls that wait for each other both return."""
    met = threading.Barrier(2, timeout=30)

    async def meet() -> bool:
        await asyncio.to_thread(met.wait)
        return True

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda _: bridge.run(meet), range(2)))


async def test_a_call_from_a_running_loop_is_refused(bridge: Bridge) -> None:
    """It would block the loop: the error says to await instead, and the call has not begun."""
    begun = []

    async def begin() -> None:
        begun.append(True)

    with pytest.raises(WouldBlock, match="await the asynchronous method"):
        bridge.run(begin)
    with pytest.raises(WouldBlock):
        bridge.enter(nullcontext())
    assert not begun
    assert bridge_threads() == []


async def test_a_call_may_block_a_running_loop_on_request(bridge: Bridge) -> None:
    """`run_blocking` works from a running loop other than the bridge's own."""
    assert bridge.run_blocking(double, 3) == 6


def test_a_call_from_within_a_call_is_refused(bridge: Bridge) -> None:
    """The bridge's loop would wait for itself forever."""

    async def again() -> None:
        bridge.run_blocking(double, 1)

    async def close() -> None:
        bridge.close()

    with pytest.raises(WouldBlock, match="wait for itself"):
        bridge.run(again)
    with pytest.raises(WouldBlock, match="cannot be closed"):
        bridge.run(close)


def test_closing_ends_the_thread(bridge: Bridge) -> None:
    """A closed bridge has no thread, can be closed again, and raises when it is used."""
    bridge.run(double, 1)
    assert len(bridge_threads()) == 1
    bridge.close()
    assert bridge_threads() == []
    bridge.close()
    with pytest.raises(SessionClosed, match="create a new Bridge"):
        bridge.run(double, 1)


def test_closing_cancels_calls_and_leaves_contexts(bridge: Bridge) -> None:
    """A context that is still entered is left when the bridge closes, and the close does not wait
    forever."""
    left = []

    @asynccontextmanager
    async def resource() -> AsyncIterator[str]:
        try:
            yield "entered"
        finally:
            left.append(True)

    entered = bridge.enter(resource())
    assert entered.__enter__() == "entered"
    bridge.close()
    assert left == [True]


def test_a_call_that_is_interrupted_by_a_close_raises(bridge: Bridge) -> None:
    """A caller in another thread gets an error of the library instead of waiting forever."""
    begun = threading.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bridge.run, wait)
        assert begun.wait(120)
        bridge.close()
        with pytest.raises(SessionClosed, match="before this call ended"):
            waiting.result(30)


def test_a_loop_that_cannot_start_is_an_error(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets the reason, and the next call tries again."""

    def no_descriptors(*_: object) -> None:
        raise OSError("Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("cached_session.adapters.bridge.anyio.run", no_descriptors)
        with pytest.raises(OSError, match="Too many open files"):
            bridge.run(double, 1)
    assert bridge.run(double, 1) == 2


def test_synchronous_code_can_use_a_session(bridge: Bridge, tmp_path: object) -> None:
    """`enter` opens the session, the bridge closes it, and its items are there the next time."""
    journal = f"{tmp_path}/agent.db"
    with bridge.enter(CachedSession("a", journal=journal)) as session:
        bridge.run(session.add_items, [{"role": "user", "content": "Hi"}])
    with bridge.enter(CachedSession("a", journal=journal)) as session:
        assert bridge.run(session.get_items) == [{"role": "user", "content": "Hi"}]
    with pytest.raises(SessionClosed):
        bridge.run(session.get_items)


def test_an_unclosed_bridge_warns(bridge: Bridge) -> None:
    """The warning says that its thread keeps running."""
    forgotten = Bridge()
    forgotten.run(double, 1)
    portal, thread = forgotten._portal, forgotten._thread
    assert portal is not None
    assert thread is not None
    with pytest.warns(ResourceWarning, match="never closed"):
        del forgotten
    assert thread.is_alive()
    portal.call(portal.stop)
    thread.join()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del bridge


SCRIPT = """
import logging, os, sys
from cached_session import CachedSession, SyncTimeout
logging.getLogger("cached_session").setLevel(logging.ERROR)
from cached_session.adapters.bridge import Bridge, shared_bridge
async def one(): return 1
own = Bridge()
assert own.run(one) == 1
session = CachedSession.from_url("a", url="http://127.0.0.1:9", journal=sys.argv[1])
shared_bridge().run(session.add_items, [{"role": "user", "content": "Hi"}])
try:
    shared_bridge().run(session.flush, 0.2)  # the replicator is at work
except SyncTimeout:
    pass
if "fork" in sys.argv:
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status == 0, status
    else:
        other = CachedSession("a", journal=sys.argv[1])
        assert shared_bridge().run(other.get_items) == [{"role": "user", "content": "Hi"}]
        shared_bridge().run(other.close)
        assert own.run(one) == 1
        own.close()
        sys.exit(0)
own.close()
print("end")
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_a_program_ends_without_closing_its_bridge(how: str, tmp_path: object) -> None:
    """The shared bridge ends with Python, also with an unreachable server and in a forked child,
    which has a bridge of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, f"{tmp_path}/agent.db", how],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_adapters_share_one_bridge(bridge: Bridge) -> None:
    """Adapters without a bridge of their own share one thread."""
    assert shared_bridge() is shared_bridge()
    assert shared_bridge() is not bridge
