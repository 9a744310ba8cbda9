"""One session used from several event loops, threads and tasks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, Runner

from cached_session import CachedSession, SessionCache
from cached_session.devserver import DevServer
from tests.session.session_support import ScriptedModel, contents, messages, replicators

pytestmark = pytest.mark.filterwarnings(
    # A loop that stops between making a task and its first step leaves a coroutine that never ran.
    "ignore:coroutine '(Replicator|Puller|Pusher|Auditor):RuntimeWarning"
)


def in_threads(*works: Callable[[], Any]) -> None:
    """Run each function in a thread of its own, and raise the first error."""
    start = threading.Barrier(len(works))
    errors: list[BaseException] = []

    def one(work: Callable[[], Any]) -> None:
        start.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=one, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_one_session_works_on_two_event_loops(place: str) -> None:
    """With two `asyncio.run` over one object, the second continues the history of the first."""
    session = CachedSession("s", journal=place)
    asyncio.run(session.add_items(messages("a")))

    async def second() -> None:
        await session.add_items(messages("b"))
        assert contents(await session.get_items()) == ["a", "b"]
        assert await session.pop_item() == messages("b")[0]
        await session.close()

    asyncio.run(second())


def test_the_replicator_moves_to_the_next_loop(server: DevServer, journal: Path) -> None:
    """Items that were written on each of several loops arrive."""
    session = CachedSession.from_url("s", url=server.url, journal=journal)

    async def turn(word: str) -> None:
        await session.add_items(messages(word))
        await session.flush(timeout=60)
        assert len(replicators()) == 1

    for word in "abc":
        asyncio.run(turn(word))
    asyncio.run(session.close())

    async def elsewhere() -> list[str]:
        async with CachedSession.from_url("s", url=server.url, journal=":memory:") as other:
            await other.sync(timeout=60)
            return contents(await other.get_items())

    assert asyncio.run(elsewhere()) == ["a", "b", "c"]


def test_the_next_loop_sends_what_the_last_left_unsent(server: DevServer, journal: Path) -> None:
    """A loop that ends right after a write loses nothing."""
    session = CachedSession.from_url("s", url=server.url, journal=journal)
    for word in "abc":
        asyncio.run(session.add_items(messages(word)))

    async def finish() -> None:
        await session.flush(timeout=60)
        assert session.status().pending == 0
        await session.close()

    asyncio.run(finish())


def test_loops_in_turn_leave_one_replicator(server: DevServer, journal: Path) -> None:
    """A loop that stops and runs again does not keep a replicator that has moved away."""
    session = CachedSession.from_url("s", url=server.url, journal=journal)
    loops = [asyncio.new_event_loop() for _ in range(3)]
    for turn in range(3):
        for loop in loops:
            loop.run_until_complete(session.add_items(messages(turn)))

    async def last() -> None:
        await session.flush(timeout=60)
        assert len(replicators()) == 1
        await session.close()
        assert replicators() == set()

    loops[0].run_until_complete(last())

    async def rest() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        for task in replicators():
            await asyncio.wait([task], timeout=60)
        assert replicators() == set()

    for loop in loops[1:]:
        loop.run_until_complete(rest())
    for loop in loops:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    async def again() -> None:
        # The lock must be free: only its holder pushes in the background.
        async with CachedSession.from_url("s", url=server.url, journal=journal) as other:
            changes = other.changes()
            await other.add_items(messages("after"))
            while (await anext(changes)).pending:
                pass

    asyncio.run(again())


def test_run_sync_finds_its_history(journal: Path) -> None:
    """`Runner.run_sync` makes its own loops, and the session works on each."""
    # The SDK would make this loop itself, and leave it open.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    session = CachedSession("s", journal=journal)
    model = ScriptedModel("one", "two")
    agent = Agent(name="a", model=model)
    assert Runner.run_sync(agent, "first", session=session).final_output == "one"
    assert Runner.run_sync(agent, "second", session=session).final_output == "two"
    assert [item["role"] for item in model.seen[1]] == ["user", "assistant", "user"]
    asyncio.run(session.close())
    loop.close()


def test_two_loops_in_two_threads_write_concurrently(place: str) -> None:
    """All items of each thread are stored, in that thread's order."""
    session = CachedSession("s", journal=place)

    async def talk(who: str) -> None:
        for number in range(40):
            await session.add_items(messages(f"{who}{number}"))
            assert f"{who}{number}" in contents(await session.get_items())

    in_threads(*(lambda who=who: asyncio.run(talk(who)) for who in "ab"))

    async def check() -> None:
        found = contents(await session.get_items())
        for who in "ab":
            assert [w for w in found if w[0] == who] == [f"{who}{n}" for n in range(40)]
        assert len(found) == 80
        await session.close()

    asyncio.run(check())


def test_two_threads_pop_each_item_once(place: str) -> None:
    """An item that one thread has popped is never returned to the other."""
    session = CachedSession("s", journal=place)
    asyncio.run(session.add_items(messages(*range(60))))
    got: list[Any] = []

    async def drain() -> None:
        while (item := await session.pop_item()) is not None:
            got.append(item)

    in_threads(*(lambda: asyncio.run(drain()) for _ in range(3)))
    assert sorted(map(int, contents(got))) == list(range(60))
    asyncio.run(session.close())


def test_loops_in_threads_share_the_server(server: DevServer, journal: Path) -> None:
    """The thread of the replicator's loop can end while another goes on; the items of both
    arrive."""
    session = CachedSession.from_url("s", url=server.url, journal=journal)

    async def talk(who: str, rounds: int) -> None:
        for number in range(rounds):
            await session.add_items(messages(f"{who}{number}"))
            await session.get_items(5)

    in_threads(
        lambda: asyncio.run(talk("short", 5)),
        lambda: asyncio.run(talk("long", 60)),
        lambda: asyncio.run(talk("middle", 30)),
    )

    async def finish() -> list[str]:
        report = await session.sync(timeout=60)
        assert report.pending == 0
        found = contents(await session.get_items())
        await session.close()
        return found

    ours = asyncio.run(finish())
    assert len(ours) == 95

    async def elsewhere() -> list[str]:
        async with CachedSession.from_url("s", url=server.url, journal=":memory:") as other:
            await other.sync(timeout=60)
            return contents(await other.get_items())

    assert asyncio.run(elsewhere()) == ours


def test_sync_works_from_a_loop_without_the_replicator(server: DevServer, journal: Path) -> None:
    """`flush` and `sync` work from a loop on which the replicator does not run."""
    session = CachedSession.from_url("s", url=server.url, journal=journal)
    at_home, done = threading.Event(), threading.Event()

    async def home() -> None:
        await session.get_items()
        at_home.set()
        await asyncio.to_thread(done.wait)

    def visitor() -> None:
        at_home.wait()

        async def work() -> None:
            await session.add_items(messages("a"))
            await session.flush(timeout=60)
            assert (await session.sync(timeout=60)).pending == 0
            await session.close()
            assert replicators() == set()

        try:
            asyncio.run(work())
        finally:
            done.set()

    in_threads(lambda: asyncio.run(home()), visitor)


async def test_many_tasks_write_concurrently(place: str) -> None:
    """Everything is stored, batches are whole, and each task's order is kept."""
    async with CachedSession("s", journal=place) as session:

        async def talk(who: int) -> None:
            for number in range(10):
                await session.add_items([{"who": who, "n": number, "part": p} for p in (0, 1)])

        await asyncio.gather(*map(talk, range(30)))
        found: list[Any] = await session.get_items()
    assert len(found) == 600
    assert [item["part"] for item in found] == [0, 1] * 300
    assert all(
        a["who"] == b["who"] and a["n"] == b["n"]
        for a, b in zip(found[::2], found[1::2], strict=True)
    )
    for who in range(30):
        assert [i["n"] for i in found[::2] if i["who"] == who] == list(range(10))


async def test_concurrent_calls_are_applied_in_order(place: str) -> None:
    """Tasks that start one after the other write one after the other."""
    async with CachedSession("s", journal=place) as session:
        await asyncio.gather(*(session.add_items(messages(n)) for n in range(100)))
        assert contents(await session.get_items()) == [str(n) for n in range(100)]


async def test_a_bad_call_among_many_fails_alone(place: str) -> None:
    """Of calls that share a commit, only the invalid one fails."""
    async with CachedSession("s", journal=place) as session:
        batches: list[Any] = [messages(n) if n % 3 else [{"bad": object()}] for n in range(30)]
        outcomes = await asyncio.gather(
            *(session.add_items(batch) for batch in batches), return_exceptions=True
        )
        assert [n for n, outcome in enumerate(outcomes) if outcome is not None] == [
            *range(0, 30, 3)
        ]
        assert contents(await session.get_items()) == [str(n) for n in range(30) if n % 3]


async def test_every_read_sees_the_writes_that_have_returned(place: str) -> None:
    """A read sees writes by any object over the same journal, also while others write."""
    async with SessionCache(place) as cache:
        one, other, noise = cache.session("s"), cache.session("s"), cache.session("noise")
        writing = [asyncio.ensure_future(noise.add_items(messages(n))) for n in range(200)]
        for number in range(50):
            writer, reader = (one, other) if number % 2 else (other, one)
            await writer.add_items(messages(number))
            assert contents(await reader.get_items(1)) == [str(number)]
            assert len(await reader.get_items()) == number + 1
        await asyncio.gather(*writing)
        assert len(await noise.get_items()) == 200


async def test_a_long_read_is_one_snapshot(journal: Path) -> None:
    """A batch that commits during a read is in its result entirely or not at all."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items([{"n": -1, "x": "y" * 500}] * 1000)

        async def write() -> None:
            for number in range(40):
                await session.add_items([{"n": number}] * 3)

        writing = asyncio.ensure_future(write())
        seen = 0
        while not writing.done():
            found: list[Any] = await session.get_items()
            tail = [item["n"] for item in found[1000:]]
            assert tail == [n for n in range(len(tail) // 3) for _ in "abc"]
            assert len(tail) >= seen
            seen = len(tail)
        await writing
        assert len(await session.get_items()) == 1120


@pytest.mark.promise(number=5)
@pytest.mark.parametrize("readers", [4])
def test_readers_in_threads_never_see_a_half_batch(place: str, readers: int) -> None:
    """Short reads from other threads beside a writer see only whole batches."""
    session = CachedSession("s", journal=place)
    asyncio.run(session.add_items(messages("first")))
    done = threading.Event()

    async def write() -> None:
        try:
            for number in range(60):
                await session.add_items([{"n": number}] * 4)
        finally:
            done.set()

    async def read() -> None:
        while not done.is_set():
            assert len(await session.get_items()) % 4 == 1

    works: list[Callable[[], Any]] = [lambda: asyncio.run(write())]
    works += [lambda: asyncio.run(read())] * readers
    in_threads(*works)
    asyncio.run(session.close())


def test_without_asyncio_the_error_says_that_it_is_required(place: str) -> None:
    """On another library's loop, such as trio's, the error names asyncio."""
    session = CachedSession("a", journal=place)
    adding = session.add_items(messages("x"))
    with pytest.raises(RuntimeError, match="runs on asyncio"):
        adding.send(None)
    assert asyncio.run(session.get_items()) == []
    asyncio.run(session.close())
