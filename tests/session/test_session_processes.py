"""Several processes over one journal, forks, and killed processes."""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack
from pathlib import Path

import pytest

from cached_session import CachedSession
from cached_session.devserver import DevServer
from tests.session.session_support import Child, contents, messages

OPENS = """
async def main():
    report("ready")
    wait()
    options = SyncOptions(busy_timeout=60)
    async with CachedSession("s", journal=sys.argv[1], options=options) as session:
        await session.add_items(messages(sys.argv[2], sys.argv[2]))
        assert sys.argv[2] in contents(await session.get_items())
        report("wrote")
        wait()
        report(*contents(await session.get_items()))
asyncio.run(main())
"""


@pytest.mark.parametrize("count", [2, 16])
def test_processes_open_a_new_journal_at_the_same_moment(journal: Path, count: int) -> None:
    """All processes succeed and see the same whole batches in the end."""
    with ExitStack() as stack:
        children = [stack.enter_context(Child(OPENS, journal, n)) for n in range(count)]
        for step in ("ready", "wrote"):
            for child in children:
                assert child.read_line() == [step]
            for child in children:
                child.resume()
        histories = [child.end()[-1] for child in children]
    assert all(history == histories[0] for history in histories)
    assert histories[0][::2] == histories[0][1::2]
    assert sorted(histories[0][::2], key=int) == [str(n) for n in range(count)]


ANSWERS = """
async def main():
    async with CachedSession("s", journal=sys.argv[1]) as session:
        while wait().strip() or True:
            found = contents(await session.get_items())
            if found and found[-1] == "stop":
                break
            await session.add_items(messages(f"re {found[-1]}"))
            report(*found)
    report("bye")
asyncio.run(main())
"""


async def test_each_process_reads_the_others_writes(journal: Path) -> None:
    """Items, pops and clears of one process are in the next read of the other."""
    async with CachedSession("s", journal=journal) as session:
        with Child(ANSWERS, journal) as child:
            for number in range(5):
                await session.add_items(messages(number))
                child.resume()
                assert child.read_line()[-1] == str(number)
                assert contents(await session.get_items(1)) == [f"re {number}"]
            assert await session.pop_item() == messages("re 4")[0]
            child.resume()
            assert child.read_line()[-1] == "4"
            await session.clear_session()
            await session.add_items(messages("new"))
            child.resume()
            assert child.read_line() == ["new"]
            await session.add_items(messages("stop"))
            child.resume()
            assert child.read_line() == ["bye"]
            child.end()


COMES_AND_GOES = """
async def main():
    async with CachedSession("s", journal=sys.argv[1]) as session:
        report(*contents(await session.get_items()))
        await session.add_items(messages(sys.argv[2]))
asyncio.run(main())
"""


@pytest.mark.parametrize("use", ["short", "long"])
async def test_a_process_that_closes_the_journal_removes_nothing(journal: Path, use: str) -> None:
    """Its close does not affect others: what they write afterwards is visible and stays."""
    session = CachedSession("s", journal=journal)
    await session.add_items(messages("a"))
    if use == "long":
        await session.entries()
        await session.search("a")
    for number in range(3):
        with Child(COMES_AND_GOES, journal, f"child {number}") as child:
            seen = child.end()[-1]
        assert seen == contents(await session.get_items())[:-1]
        await session.add_items(messages(f"parent {number}"))
        assert Path(f"{journal}-wal").exists()
    everything = ["a"]
    for number in range(3):
        everything += [f"child {number}", f"parent {number}"]
    assert contents(await session.get_items()) == everything
    await session.close()
    async with CachedSession("s", journal=journal) as again:
        assert contents(await again.get_items()) == everything


POPS = """
async def main():
    async with CachedSession("s", journal=sys.argv[1]) as session:
        report("ready")
        wait()
        got = []
        while (item := await session.pop_item()) is not None:
            got.append(item["content"])
        report(*got)
asyncio.run(main())
"""


async def test_processes_never_pop_the_same_item(journal: Path) -> None:
    """Exactly one pop of all processes returns an item."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(messages(*range(200)))
        with ExitStack() as stack:
            children = [stack.enter_context(Child(POPS, journal)) for _ in range(4)]
            for child in children:
                assert child.read_line() == ["ready"]
            for child in children:
                child.resume()
            got = [word for child in children for word in child.end()[-1]]
        assert sorted(got, key=int) == [str(n) for n in range(200)]
        assert await session.get_items() == []


ADDS = """
async def main():
    async with CachedSession("s", journal=sys.argv[1]) as session:
        for number in range(1000000):
            await session.add_items(messages(number, number))
            report(number)
asyncio.run(main())
"""


@pytest.mark.promise(number=1)
@pytest.mark.parametrize("after", [1, 20, 60])
async def test_a_killed_process_loses_nothing_acknowledged(journal: Path, after: int) -> None:
    """Every write that had returned is stored, and the one under way is entirely stored or not at
    all."""
    with Child(ADDS, journal) as child:
        acknowledged = [child.read_line()[0] for _ in range(after)]
        acknowledged += [line[0] for line in child.kill()]
    async with CachedSession("s", journal=journal) as session:
        found = [int(word) for word in contents(await session.get_items())]
        assert found[::2] == found[1::2]
        assert found[::2][: len(acknowledged)] == acknowledged
        assert len(found[::2]) - len(acknowledged) in (0, 1)
        await session.add_items(messages("on"))
        assert contents(await session.get_items(1)) == ["on"]
    with sqlite3.connect(journal) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    conn.close()


POPS_AND_TELLS = """
async def main():
    async with CachedSession("s", journal=sys.argv[1]) as session:
        while (item := await session.pop_item()) is not None:
            report(item["content"])
asyncio.run(main())
"""


@pytest.mark.promise(number=1)
async def test_a_killed_process_does_not_undo_its_pops(journal: Path) -> None:
    """A pop that had returned stays applied."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(messages(*range(5000)))
    with Child(POPS_AND_TELLS, journal) as child:
        popped = [child.read_line()[0] for _ in range(30)]
        popped += [line[0] for line in child.kill()]
    async with CachedSession("s", journal=journal) as session:
        left = contents(await session.get_items())
    assert not set(left) & set(popped)
    assert 5000 - len(left) - len(popped) in (0, 1)


async def test_unsent_items_of_another_process_are_sent(journal: Path, server: DevServer) -> None:
    """The replicating process sends what a local-only process wrote."""
    with Child(COMES_AND_GOES, journal, "offline") as child:
        child.end()
    async with CachedSession.from_url("s", url=server.url, journal=journal) as session:
        await session.flush(timeout=60)
    async with CachedSession.from_url("s", url=server.url, journal=":memory:") as other:
        await other.sync(timeout=60)
        assert contents(await other.get_items()) == ["offline"]


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
asyncio.run(session.add_items(messages("a")))

calls = {
    "get_items": lambda: session.get_items(),
    "add_items": lambda: session.add_items(messages("child")),
    "pop_item": lambda: session.pop_item(),
    "clear_session": lambda: session.clear_session(),
    "entries": lambda: session.entries(),
}
for name, call in calls.items():
    report(name, in_child(lambda: str(asyncio.run(call()))))

def closes():
    asyncio.run(session.close())
    return "closed"
report("close", in_child(closes))

def opens_anew():
    async def work():
        async with CachedSession("s", journal=sys.argv[1]) as mine:
            await mine.add_items(messages("child"))
            return contents(await mine.get_items())
    return json.dumps(asyncio.run(work()))
report("anew", in_child(opens_anew))

async def goes_on():
    await session.add_items(messages("b"))
    report("parent", contents(await session.get_items()))
    await session.close()
asyncio.run(goes_on())
"""


@forks
def test_a_fork_after_opening_is_refused_in_the_child(journal: Path) -> None:
    """Each call of an inherited session raises, a new session works there, and the parent goes
    on."""
    with Child(FORKS, journal) as child:
        reported = dict(child.end())
    for name in ("get_items", "add_items", "pop_item", "clear_session", "entries"):
        assert reported[name].startswith("JournalError: "), reported[name]
        assert "agent.db" in reported[name]
        assert "fork" in reported[name]
        assert "new session in the child" in reported[name]
    assert reported["close"] == "closed"
    assert reported["anew"] == '["a", "child"]'
    assert reported["parent"] == ["a", "child", "b"]
