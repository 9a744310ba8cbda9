"""Several processes over one journal, forks, and a process that is killed."""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack
from pathlib import Path

import pytest

from cached_session import CachedSession
from cached_session.devserver import DevServer
from tests.session.session_support import Child, said, words

OPENS = """
async def main():
    tell("ready")
    wait()
    options = SyncOptions(busy_timeout=60)
    async with CachedSession("s", journal=sys.argv[1], options=options) as session:
        await session.add_items(said(sys.argv[2], sys.argv[2]))
        assert sys.argv[2] in words(await session.get_items())
        tell("wrote")
        wait()
        tell(*words(await session.get_items()))
asyncio.run(main())
"""


@pytest.mark.parametrize("count", [2, 16])
def test_processes_open_a_new_journal_at_the_same_moment(journal: Path, count: int) -> None:
    """All succeed, whoever makes the file, and all see the same whole batches in the end."""
    with ExitStack() as stack:
        children = [stack.enter_context(Child(OPENS, journal, n)) for n in range(count)]
        for step in ("ready", "wrote"):
            for child in children:
                assert child.told() == [step]
            for child in children:
                child.go()
        histories = [child.end()[-1] for child in children]
    assert all(history == histories[0] for history in histories)
    assert histories[0][::2] == histories[0][1::2]
    assert sorted(histories[0][::2], key=int) == [str(n) for n in range(count)]


ANSWERS = """
async def main():
    async with CachedSession("s", journal=sys.argv[1]) as session:
        while wait().strip() or True:
            found = words(await session.get_items())
            if found and found[-1] == "stop":
                break
            await session.add_items(said(f"re {found[-1]}"))
            tell(*found)
    tell("bye")
asyncio.run(main())
"""


async def test_each_sees_the_others_words_at_its_next_read(journal: Path) -> None:
    """Two processes in turn: what one has written the other reads at once, pops and clears too."""
    async with CachedSession("s", journal=journal) as session:
        with Child(ANSWERS, journal) as child:
            for number in range(5):
                await session.add_items(said(number))
                child.go()
                assert child.told()[-1] == str(number)
                assert words(await session.get_items(1)) == [f"re {number}"]
            assert await session.pop_item() == said("re 4")[0]
            child.go()
            assert child.told()[-1] == "4"
            await session.clear_session()
            await session.add_items(said("new"))
            child.go()
            assert child.told() == ["new"]
            await session.add_items(said("stop"))
            child.go()
            assert child.told() == ["bye"]
            child.end()


COMES_AND_GOES = """
async def main():
    async with CachedSession("s", journal=sys.argv[1]) as session:
        tell(*words(await session.get_items()))
        await session.add_items(said(sys.argv[2]))
asyncio.run(main())
"""


@pytest.mark.parametrize("use", ["short", "long"])
async def test_a_process_that_comes_and_goes_takes_nothing_along(journal: Path, use: str) -> None:
    """Its last close is not the journal's: what the others write afterwards is seen, and stays."""
    session = CachedSession("s", journal=journal)
    await session.add_items(said("a"))
    if use == "long":
        await session.entries()
        await session.search("a")
    for number in range(3):
        with Child(COMES_AND_GOES, journal, f"child {number}") as child:
            seen = child.end()[-1]
        assert seen == words(await session.get_items())[:-1]
        await session.add_items(said(f"parent {number}"))
        assert Path(f"{journal}-wal").exists()
    everything = ["a"]
    for number in range(3):
        everything += [f"child {number}", f"parent {number}"]
    assert words(await session.get_items()) == everything
    await session.close()
    async with CachedSession("s", journal=journal) as again:
        assert words(await again.get_items()) == everything


POPS = """
async def main():
    async with CachedSession("s", journal=sys.argv[1]) as session:
        tell("ready")
        wait()
        got = []
        while (item := await session.pop_item()) is not None:
            got.append(item["content"])
        tell(*got)
asyncio.run(main())
"""


async def test_processes_never_pop_the_same_item(journal: Path) -> None:
    """Each item is returned by exactly one pop of all processes."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said(*range(200)))
        with ExitStack() as stack:
            children = [stack.enter_context(Child(POPS, journal)) for _ in range(4)]
            for child in children:
                assert child.told() == ["ready"]
            for child in children:
                child.go()
            got = [word for child in children for word in child.end()[-1]]
        assert sorted(got, key=int) == [str(n) for n in range(200)]
        assert await session.get_items() == []


ADDS = """
async def main():
    async with CachedSession("s", journal=sys.argv[1]) as session:
        for number in range(1000000):
            await session.add_items(said(number, number))
            tell(number)
asyncio.run(main())
"""


@pytest.mark.promise(number=1)
@pytest.mark.parametrize("after", [1, 20, 60])
async def test_a_killed_process_loses_nothing_acknowledged(journal: Path, after: int) -> None:
    """Everything whose call had returned is there; of the one under way, all or nothing."""
    with Child(ADDS, journal) as child:
        acknowledged = [child.told()[0] for _ in range(after)]
        acknowledged += [line[0] for line in child.kill()]
    async with CachedSession("s", journal=journal) as session:
        found = [int(word) for word in words(await session.get_items())]
        assert found[::2] == found[1::2]
        assert found[::2][: len(acknowledged)] == acknowledged
        assert len(found[::2]) - len(acknowledged) in (0, 1)
        await session.add_items(said("on"))
        assert words(await session.get_items(1)) == ["on"]
    with sqlite3.connect(journal) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    conn.close()


POPS_AND_TELLS = """
async def main():
    async with CachedSession("s", journal=sys.argv[1]) as session:
        while (item := await session.pop_item()) is not None:
            tell(item["content"])
asyncio.run(main())
"""


@pytest.mark.promise(number=1)
async def test_a_killed_process_never_brings_back_what_it_popped(journal: Path) -> None:
    """A pop that had returned stays a pop."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said(*range(5000)))
    with Child(POPS_AND_TELLS, journal) as child:
        popped = [child.told()[0] for _ in range(30)]
        popped += [line[0] for line in child.kill()]
    async with CachedSession("s", journal=journal) as session:
        left = words(await session.get_items())
    assert not set(left) & set(popped)
    assert 5000 - len(left) - len(popped) in (0, 1)


async def test_another_processes_unsent_words_are_sent(journal: Path, server: DevServer) -> None:
    """What a local-only process wrote is carried by the one that replicates."""
    with Child(COMES_AND_GOES, journal, "offline") as child:
        child.end()
    async with CachedSession.from_url("s", url=server.url, journal=journal) as session:
        await session.flush(timeout=60)
    async with CachedSession.from_url("s", url=server.url, journal=":memory:") as other:
        await other.sync(timeout=60)
        assert words(await other.get_items()) == ["offline"]


# -- forks ---------------------------------------------------------------------------------------

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


FORKS = """
def in_child(work):
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            text = work()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text

session = CachedSession("s", journal=sys.argv[1])
asyncio.run(session.add_items(said("a")))

calls = {
    "get_items": lambda: session.get_items(),
    "add_items": lambda: session.add_items(said("child")),
    "pop_item": lambda: session.pop_item(),
    "clear_session": lambda: session.clear_session(),
    "entries": lambda: session.entries(),
}
for name, call in calls.items():
    tell(name, in_child(lambda: str(asyncio.run(call()))))

def closes():
    asyncio.run(session.close())
    return "closed"
tell("close", in_child(closes))

def opens_anew():
    async def work():
        async with CachedSession("s", journal=sys.argv[1]) as mine:
            await mine.add_items(said("child"))
            return words(await mine.get_items())
    return json.dumps(asyncio.run(work()))
tell("anew", in_child(opens_anew))

async def goes_on():
    await session.add_items(said("b"))
    tell("parent", words(await session.get_items()))
    await session.close()
asyncio.run(goes_on())
"""


@forks
def test_a_fork_after_opening_is_refused_in_the_child(journal: Path) -> None:
    """An inherited session says so at each call; a new one works there, and the parent goes on."""
    with Child(FORKS, journal) as child:
        told = dict(child.end())
    for name in ("get_items", "add_items", "pop_item", "clear_session", "entries"):
        assert told[name].startswith("JournalError: "), told[name]
        assert "agent.db" in told[name]
        assert "fork" in told[name]
        assert "new session in the child" in told[name]
    assert told["close"] == "closed"
    assert told["anew"] == '["a", "child"]'
    assert told["parent"] == ["a", "child", "b"]
